/**
 * The neighbours of an image on which a process works at random (random.test.ts): its base is used,
 * and so are images on its snapshots.
 */
import { open, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';

import { type CreateOptions, Image } from '../../src/engine/index.js';
import { pullLazily } from '../../src/registry/lazy-image.js';
import { PLAIN, pushing } from '../registry/images.js';
import { MoodyRegistry } from '../registry/moody.js';
import { working } from '../stream/images.js';
import { attachedTo, monitored } from './monitored.js';
import type { TestMount } from './mount.js';
import type { Conversation } from './program.js';
import type { Random } from './random.js';

const PAGE = 4096;
const PAGES = 2048;
export const SIZE = PAGES * PAGE;
const MOST_SNAPSHOTS = 3;
const LONGEST_RUN = 200; // pages

/** The value that fills each page. */
type Content = Uint8Array;

function contentOf(bytes: Uint8Array): Content {
  const content = new Uint8Array(PAGES);
  for (let page = 0; page < PAGES; ++page) {
    const part = bytes.subarray(page * PAGE, (page + 1) * PAGE);
    content[page] = part[0]!;
    if (!part.every((byte) => byte === part[0]))
      throw new Error(`page ${page} is not of one piece`);
  }
  return content;
}

/**
 * The base of the image, in use: written by the mount and by its own guest, with snapshots that are
 * taken, deleted and rolled back to. It is modelled, because images that stand on it must not
 * affect it. If the mount dies in the middle of an operation, that has happened or not: settle().
 */
export class Base {
  static readonly snapshot = 's';
  static readonly value = 0x55;

  readonly #mount: TestMount;
  readonly #random: Random;
  readonly #tool: string;
  #content: Content = new Uint8Array(PAGES).fill(Base.value);
  readonly #snapshots = new Map<string, Content>([[Base.snapshot, this.#content.slice()]]);
  #guest: Conversation | null = null;
  #made = 0;
  /**
   * The operation in progress: the other possible content, and a snapshot that may or may not
   * exist.
   */
  #doubt: { content?: Content; snapshot?: [string, Content] } = {};
  /** How often each operation was done. */
  readonly done: Record<string, number> = {};

  private constructor(mount: TestMount, random: Random, tool: string) {
    this.#mount = mount;
    this.#random = random;
    this.#tool = tool;
  }

  /** `tool`: map-tool.c. */
  static async make(
    mount: TestMount,
    random: Random,
    tool: string,
    blockSize: number,
  ): Promise<Base> {
    await Base.#filled(mount.image('base'), { size: SIZE, blockSize });
    return new Base(mount, random, tool);
  }

  /** The same, but its bytes are still in a registry: it stands on a lazy image. */
  static async makeLazily(
    mount: TestMount,
    random: Random,
    tool: string,
  ): Promise<{ base: Base; registry: MoodyRegistry }> {
    const pushed = path.join(mount.scratch, 'pushed.pcow');
    const layout = path.join(mount.scratch, 'layout');
    await Base.#filled(pushed, { size: SIZE });
    await pushing(pushed, Base.snapshot, `oci:${layout}:v1`, PLAIN);
    const registry = await MoodyRegistry.start(mount.t, layout, random);
    const golden = mount.image('golden');
    const limit = random.pick([undefined, SIZE / 2]);
    await pullLazily(`${registry.host}/golden:v1`, golden, { ...PLAIN, limit });
    const on = { base: { path: golden, snapshot: Base.snapshot } };
    await Image.create(mount.image('base'), on);
    await working(mount.image('base'), (image) => image.snapshot(Base.snapshot));
    return { base: new Base(mount, random, tool), registry };
  }

  static async #filled(file: string, options: CreateOptions): Promise<void> {
    await Image.create(file, options);
    await working(file, async (image) => {
      await image.write(Buffer.alloc(SIZE, Base.value), 0);
      await image.snapshot(Base.snapshot);
    });
  }

  /** One change or read. Fails if the mount dies. */
  async use(): Promise<void> {
    const what = this.#random.weighted({
      write: 4,
      snapshot: 2,
      delete: 2,
      rollback: 1,
      guest: 2,
      look: 2,
    });
    this.done[what] = (this.done[what] ?? 0) + 1;
    await {
      write: () => this.#write(),
      snapshot: () => this.#snapshot(),
      delete: () => this.#delete(),
      rollback: () => this.#rollback(),
      guest: () => (this.#guest ? this.endGuest() : this.#beginGuest()),
      look: () => this.#look(),
    }[what]();
    this.#doubt = {};
  }

  async #write(): Promise<void> {
    const first = this.#random.below(PAGES);
    const end = Math.min(PAGES, first + 1 + this.#random.below(LONGEST_RUN));
    const value = this.#random.below(256);
    const after = this.#content.slice().fill(value, first, end);
    if (this.#guest) {
      const answer = await this.#guest.ask(
        `write ${first * PAGE} ${(end - first) * PAGE} ${value}`,
      );
      if (answer !== 'ok') throw new Error(`the base's guest: ${answer}`);
    } else {
      this.#doubt = { content: after };
      const file = await open(this.#mount.file('base'), 'r+');
      try {
        await file.write(
          Buffer.alloc((end - first) * PAGE, value),
          0,
          (end - first) * PAGE,
          first * PAGE,
        );
      } finally {
        await file.close();
      }
    }
    this.#content = after;
  }

  async #snapshot(): Promise<void> {
    if (this.#snapshots.size >= MOST_SNAPSHOTS) return;
    const name = `b${(this.#made += 1)}`;
    this.#doubt = { snapshot: [name, this.#content.slice()] };
    await this.#mount.write(name, 'base', 'snapshot');
    this.#snapshots.set(name, this.#content.slice());
  }

  async #delete(): Promise<void> {
    const name = this.#random.pick([...this.#snapshots.keys()]);
    if (name === Base.snapshot) {
      await this.#refused('EBUSY', name, 'delete'); // an image stands on it
      return;
    }
    this.#doubt = { snapshot: [name, this.#snapshots.get(name)!] };
    this.#snapshots.delete(name);
    await this.#mount.write(name, 'base', 'delete');
  }

  async #rollback(): Promise<void> {
    const name = this.#random.pick([...this.#snapshots.keys()]);
    if (this.#guest) {
      await this.#refused('EBUSY', name, 'rollback');
      return;
    }
    const after = this.#snapshots.get(name)!.slice();
    this.#doubt = { content: after };
    await this.#mount.write(name, 'base', 'rollback');
    this.#content = after;
  }

  async #refused(errno: string, text: string, control: string): Promise<void> {
    const error = await this.#mount.write(text, 'base', control).then(
      () => null,
      (reason: unknown) => reason as NodeJS.ErrnoException,
    );
    if (error?.code !== errno) throw error ?? new Error(`${control} ${text} was not refused`);
  }

  async #beginGuest(): Promise<void> {
    this.#guest = await monitored(this.#mount.t, this.#tool, [this.#mount.file('base')]);
    await attachedTo(this.#mount, 'base', this.#guest.pid);
  }

  async endGuest(): Promise<void> {
    const guest = this.#guest;
    this.#guest = null;
    await guest?.end(this.#random.chance(0.5) ? 'SIGKILL' : undefined);
    await attachedTo(this.#mount, 'base', null);
  }

  async #look(): Promise<void> {
    const name = this.#random.pick([...this.#snapshots.keys()]);
    const bytes = await readFile(this.#mount.control('base', 'at', name));
    this.#compare(name, contentOf(bytes), this.#snapshots.get(name)!);
    this.#compare('base', contentOf(await readFile(this.#mount.file('base'))), this.#content);
  }

  #compare(name: string, found: Content, expected: Content, or: Content = expected): void {
    const page = found.findIndex((value, at) => value !== expected[at] && value !== or[at]);
    if (page >= 0)
      throw new Error(`${name}: page ${page} is full of ${found[page]}, not of ${expected[page]}`);
  }

  /**
   * There is another mount: the operation in progress has happened or not, and everything else is
   * unchanged.
   */
  async settle(): Promise<void> {
    const { content, snapshot } = this.#doubt;
    this.#doubt = {};
    await attachedTo(this.#mount, 'base', this.#guest?.pid ?? null);
    const names = await readdir(this.#mount.control('base', 'at'));
    if (snapshot && names.includes(snapshot[0])) this.#snapshots.set(...snapshot);
    this.#mount.t.deepEqual(names.sort(), [...this.#snapshots.keys()].sort());
    for (const [name, expected] of this.#snapshots)
      this.#compare(
        name,
        contentOf(await readFile(this.#mount.control('base', 'at', name))),
        expected,
      );
    const found = contentOf(await readFile(this.#mount.file('base')));
    this.#compare('base', found, this.#content, content);
    this.#content = found;
  }
}

/** An image on a snapshot of the image, with its own guest, which writes. */
export class Side {
  private constructor(
    readonly mount: TestMount,
    readonly guest: Conversation,
    readonly content: Buffer,
  ) {}

  static async begin(mount: TestMount, tool: string, snapshot: string): Promise<Side> {
    const content = await readFile(mount.control('vm1', 'at', snapshot));
    await mount.write(`side ${snapshot}`, 'vm1', 'clone');
    return new Side(mount, await monitored(mount.t, tool, [mount.file('side')]), content);
  }

  async use(random: Random): Promise<void> {
    const offset = random.below(SIZE);
    const length = 1 + random.below(Math.min(SIZE - offset, LONGEST_RUN * PAGE));
    const value = random.below(256);
    this.content.fill(value, offset, offset + length);
    this.mount.t.is(await this.guest.ask(`write ${offset} ${length} ${value}`), 'ok');
  }

  /** It has the expected content. The mount must be alive. */
  async end(random: Random): Promise<void> {
    const dump = path.join(this.mount.scratch, 'side');
    this.mount.t.is(await this.guest.ask(`dump ${dump}`), 'ok');
    this.mount.t.true(
      (await readFile(dump)).equals(this.content),
      'the side image, as its guest has it',
    );
    await this.guest.end(random.chance(0.5) ? 'SIGKILL' : undefined);
    await attachedTo(this.mount, 'side', null);
    this.mount.t.true(
      (await readFile(this.mount.file('side'))).equals(this.content),
      'the side image',
    );
    await this.mount.write('side', 'side', 'remove');
  }
}
