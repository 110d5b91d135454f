/**
 * Reads parts of a blob with range requests. A registry may ignore ranges and send everything: then
 * the parts are read from that one answer, as long as they are requested in ascending order.
 */
import { BadTransfer, bodyOf, broken, chunksOf, type HttpAnswer } from './answers.js';
import { type Blob, corrupt } from './manifest.js';
import type { BlobReader } from './store.js';
import { type Trying, untilDone } from './tries.js';

interface Range {
  offset: number;
  length: number;
}

/** Sends one request for a part of the blob, or for all of it, and lets `use` read the answer. */
type Get = <T>(range: Range | null, use: (answer: HttpAnswer) => Promise<T>) => Promise<T>;

export class RemoteBlob implements BlobReader {
  /** The first part is read alone, because it shows whether ranges work. */
  #first: Promise<unknown> | undefined;
  #whole: WholeAnswer | null = null;
  /** Parts that are read from one answer, one after another. */
  #last: Promise<unknown> = Promise.resolve();

  /** `name`: of the image, for messages. */
  constructor(
    private readonly blob: Blob,
    private readonly name: string,
    private readonly trying: Trying,
    private readonly get: Get,
  ) {}

  async read(offset: number, length: number): Promise<Buffer> {
    const range = { offset, length };
    if (this.#first === undefined) {
      const first = this.#part(range);
      this.#first = first.catch(() => undefined);
      return first;
    }
    await this.#first;
    return this.#part(range);
  }

  close(): Promise<void> {
    this.#whole?.end();
    return Promise.resolve();
  }

  async #part(range: Range): Promise<Buffer> {
    if (this.#whole === null) {
      const bytes = await untilDone(this.trying, () => this.#ranged(range));
      if (bytes !== null) return bytes;
    }
    // It is tried again before the next part: otherwise that one would need an answer of its own.
    const next = this.#last.then(() => untilDone(this.trying, () => this.#fromWhole(range)));
    this.#last = next.catch(() => undefined);
    return next;
  }

  /** null: the registry sends the whole blob. */
  async #ranged(range: Range): Promise<Buffer | null> {
    const isAll = range.offset === 0 && range.length === this.blob.size;
    return this.get(range, async (answer) => {
      if (answer.status === 200 && !isAll) {
        this.#whole?.end();
        this.#whole = new WholeAnswer(answer);
        return null;
      }
      if (answer.status === 206) this.#checkRange(answer, range);
      const body = await bodyOf(answer, range.length);
      if (body.length === range.length) return body;
      throw broken(new BadTransfer('the answer ends too early'), answer);
    });
  }

  #checkRange({ headers, url }: HttpAnswer, { offset, length }: Range): void {
    const told = /^bytes (\d+)-(\d+)\//.exec(String(headers['content-range'] ?? ''));
    if (Number(told?.[1]) === offset && Number(told?.[2]) === offset + length - 1) return;
    const { digest } = this.blob;
    throw corrupt(this.name, `${url.host} sends another part of ${digest} than was asked for`);
  }

  async #fromWhole({ offset, length }: Range): Promise<Buffer> {
    let whole = this.#whole;
    if (whole === null || whole.position > offset) {
      whole?.end();
      whole = await this.get(null, (answer) => Promise.resolve(new WholeAnswer(answer)));
      this.#whole = whole;
    }
    try {
      await whole.take(offset - whole.position, false);
      return await whole.take(length, true);
    } catch (error) {
      whole.end();
      // Its position is no longer known: the next try starts another one.
      whole.position = Infinity;
      throw error;
    }
  }
}

/** An answer that contains a blob from its beginning. */
class WholeAnswer {
  position = 0;
  readonly #chunks: AsyncGenerator<Buffer, void>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(private readonly answer: HttpAnswer) {
    this.#chunks = chunksOf(answer);
  }

  /** The next bytes; none if they are only skipped. */
  async take(length: number, keep: boolean): Promise<Buffer> {
    const kept: Buffer[] = [];
    for (let missing = length; missing > 0;) {
      if (this.#rest.length === 0) this.#rest = await this.#next();
      const part = this.#rest.subarray(0, missing);
      this.#rest = this.#rest.subarray(part.length);
      this.position += part.length;
      missing -= part.length;
      if (keep) kept.push(part);
    }
    return Buffer.concat(kept);
  }

  end(): void {
    this.answer.body.destroy();
  }

  async #next(): Promise<Buffer> {
    const { value } = await this.#chunks.next();
    if (value !== undefined) return value;
    throw broken(new BadTransfer('the answer ends too early'), this.answer);
  }
}
