/**
 * The expected contents of images, in memory, in the simplest way: a list of 4 KiB pages for each
 * state. A page is never changed in place, so a snapshot is a copy of the list.
 */
const PAGE = 4096;
const ZEROS = new Uint8Array(PAGE);

export class ModelState {
  #pages: Uint8Array[];

  constructor(readonly size: number) {
    this.#pages = new Array<Uint8Array>(size / PAGE).fill(ZEROS);
  }

  copy(): ModelState {
    return this.resized(this.size);
  }

  /** A copy with more zeros at its end. */
  resized(size: number): ModelState {
    const copy = new ModelState(size);
    for (let i = 0; i < this.#pages.length; ++i) copy.#pages[i] = this.#pages[i]!;
    return copy;
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#change(offset, bytes.length, (page, at, from, length) => {
      page.set(bytes.subarray(from, from + length), at);
    });
  }

  discard(offset: number, length: number): void {
    this.#change(offset, length, (page, at, _from, part) => {
      page.fill(0, at, at + part);
    });
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const at = (offset + done) % PAGE;
      const part = Math.min(PAGE - at, length - done);
      bytes.set(this.#pages[Math.floor((offset + done) / PAGE)]!.subarray(at, at + part), done);
      done += part;
    }
    return bytes;
  }

  #change(
    offset: number,
    length: number,
    apply: (page: Uint8Array, at: number, from: number, length: number) => void,
  ): void {
    for (let done = 0; done < length;) {
      const index = Math.floor((offset + done) / PAGE);
      const at = (offset + done) % PAGE;
      const part = Math.min(PAGE - at, length - done);
      const page = Uint8Array.from(this.#pages[index]!);
      apply(page, at, done, part);
      this.#pages[index] = page;
      done += part;
    }
  }
}

export interface ModelSnapshot {
  name: string;
  state: ModelState;
  /** The id of its layer in the image. */
  layer: number;
}

/** One image: its active state and its snapshots, oldest first. */
export class ModelImage {
  snapshots: ModelSnapshot[] = [];

  constructor(
    readonly path: string,
    public active: ModelState,
    /** The image and layer on which it stands. */
    readonly base: { path: string; layer: number } | null,
    /** The number of images between it and the first of its chain. */
    readonly depth: number,
  ) {}

  snapshot(name: string): ModelSnapshot {
    const snapshot = this.snapshots.find((candidate) => candidate.name === name);
    if (!snapshot) throw new Error(`the model has no snapshot ${name}`);
    return snapshot;
  }
}
