/**
 * Images of the original Pcow ("NBJL"), read-only. Such a file is a sequence of blocks:
 *
 *   Super | Meta | data × N | Meta | data × N | … | Super (a snapshot was taken) | Meta | …
 *
 * Each entry of a Meta describes the data block at the same position: the number of its virtual
 * block, and a bitmap of the units of 4 KiB that have been copied to it. The other units are as
 * before. The original program never read the bitmaps; after it was killed, it showed zeros
 * instead.
 *
 * A bitmap has 32 bits, whatever the block size. The original set the bit of unit n by `1ULL << n
 * << 32`. Because of how x86-64 shifts, units 32 to 63 have no bit, and unit 64 has that of unit 0
 * again. It copied one unit first, and the whole block at a further fault. So in blocks of more
 * than 128 KiB a bit stands for those of its units that have any data.
 */
import { type FileHandle, open, realpath } from 'node:fs/promises';
import path from 'node:path';

import { PcowError } from '../engine/index.js';
import type { Contents, Range } from './contents.js';

const MAGIC = 'NBJL';
const MAGIC_AT = 12;
const HEADER = 64;

/** Bytes per bit of a bitmap. */
const UNIT = 4096;

/** The number of units after which the bits repeat. */
const BITS_AGAIN = 64;

/** Where the data of a virtual block is. */
interface BlockCopy {
  /** Number of the block in the file. */
  index: number;
  /** Which of its units it has, one bit each; 0: all. */
  bitmap: number;
}

/** The blocks that were written between two snapshots. */
type Segment = Map<number, BlockCopy>;

export class OriginalImage {
  private constructor(
    readonly path: string,
    /** Bytes. */
    readonly blockSize: number,
    /** Bytes of the virtual disk. */
    readonly size: number,
    readonly base: OriginalImage | null,
    private readonly handle: FileHandle,
    private readonly segments: Segment[],
  ) {}

  /**
   * Opens the image and its bases. Fails with PCOW_CORRUPT, PCOW_BASE_MISSING or PCOW_BASE_LOOP,
   * and says where the fault is.
   */
  static async open(file: string, above: readonly string[] = []): Promise<OriginalImage> {
    const real = await realpath(file);
    const handle = await open(real);
    try {
      const reader = new Reader(real, handle, (await handle.stat()).size);
      const first = await reader.super(0);
      const segments = await reader.segments(first);
      const base = first.base === '' ? null : await openBase(real, first.base, [...above, real]);
      return new OriginalImage(
        real,
        first.blockSize,
        first.blocks * first.blockSize,
        base,
        handle,
        segments,
      );
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /**
   * The number of snapshots. The states are 0 to this number; the last one is the present state.
   */
  get snapshots(): number {
    return this.segments.length - 1;
  }

  /**
   * The content at the time of snapshot number `state` + 1, or the present content. Closing it does
   * not close the image.
   */
  state(state: number): Contents {
    return {
      size: this.size,
      // What is held is known already; others of its kind do wait.
      // eslint-disable-next-line @typescript-eslint/require-await
      ranges: async function* (this: OriginalImage) {
        yield* this.#ranges(state);
      }.bind(this),
      read: async (buffer, offset) => {
        for (let done = 0; done < buffer.length;) {
          const unit = UNIT - ((offset + done) % UNIT);
          const part = buffer.subarray(done, Math.min(buffer.length, done + unit));
          await this.#readUnit(part, offset + done, state);
          done += part.length;
        }
      },
      close: () => Promise.resolve(),
    };
  }

  async close(): Promise<void> {
    await this.handle.close();
    await this.base?.close();
  }

  *#ranges(state: number): Generator<Range> {
    let at = 0;
    for (let offset = 0; offset < this.size; offset += this.blockSize) {
      const held = this.#holds(offset, state);
      const last = offset + this.blockSize >= this.size;
      const next = last ? undefined : this.#holds(offset + this.blockSize, state);
      if (held !== next) {
        yield { offset: at, length: Math.min(this.size, offset + this.blockSize) - at, data: held };
        at = offset + this.blockSize;
      }
    }
  }

  #holds(offset: number, state: number): boolean {
    const block = Math.floor(offset / this.blockSize);
    if (this.segments.slice(0, state + 1).some((segment) => segment.has(block))) return true;
    // Its base may have another block size: check all blocks that overlap.
    const { base } = this;
    if (base === null) return false;
    for (let at = offset; at < Math.min(offset + this.blockSize, base.size); at += base.blockSize) {
      if (base.#holds(at, base.snapshots)) return true;
    }
    return false;
  }

  async #isThere({ index, bitmap }: BlockCopy, unit: number): Promise<boolean> {
    if (bitmap === 0) return true;
    const bit = unit % BITS_AGAIN;
    if (bit >= 32 || ((bitmap >>> bit) & 1) === 0) return false;
    const units = this.blockSize / UNIT;
    if (units <= BITS_AGAIN) return true;
    if (await this.#holdsBytes(index, unit)) return true;
    if (unit >= BITS_AGAIN) return false;
    // Zeros were copied, if no other unit of this bit has data.
    for (let other = unit + BITS_AGAIN; other < units; other += BITS_AGAIN) {
      if (await this.#holdsBytes(index, other)) return false;
    }
    return true;
  }

  async #holdsBytes(index: number, unit: number): Promise<boolean> {
    const buffer = Buffer.alloc(UNIT);
    const { bytesRead } = await this.handle.read(
      buffer,
      0,
      UNIT,
      index * this.blockSize + unit * UNIT,
    );
    return buffer.subarray(0, bytesRead).some((byte) => byte !== 0);
  }

  /** Reads a part of one unit. */
  async #readUnit(buffer: Uint8Array, offset: number, state: number): Promise<void> {
    const block = Math.floor(offset / this.blockSize);
    const unit = Math.floor((offset % this.blockSize) / UNIT);
    for (let number = state; number >= 0; number -= 1) {
      const copy = this.segments[number]?.get(block);
      if (copy === undefined || !(await this.#isThere(copy, unit))) continue;
      const { bytesRead } = await this.handle.read(
        buffer,
        0,
        buffer.length,
        copy.index * this.blockSize + (offset % this.blockSize),
      );
      if (bytesRead < buffer.length)
        throw new PcowError('PCOW_IO', `${this.path} became shorter during the read`);
      return;
    }
    const below = this.base && Math.max(0, Math.min(buffer.length, this.base.size - offset));
    buffer.fill(0, below ?? 0);
    if (this.base && below)
      await this.base.state(this.base.snapshots).read(buffer.subarray(0, below), offset);
  }
}

/** Whether a file begins like such an image. */
export function beginsLikeOriginal(start: Buffer): boolean {
  return start.toString('latin1', MAGIC_AT, MAGIC_AT + MAGIC.length) === MAGIC;
}

async function openBase(
  image: string,
  name: string,
  above: readonly string[],
): Promise<OriginalImage> {
  // The original program searched its working directory; users often keep bases beside their
  // images.
  const candidates = path.isAbsolute(name)
    ? [name]
    : [path.join(path.dirname(image), name), path.resolve(name)];
  for (const candidate of candidates) {
    let real: string;
    try {
      real = await realpath(candidate);
    } catch {
      continue;
    }
    if (above.includes(real)) {
      throw new PcowError('PCOW_BASE_LOOP', `${image} stands on ${real}, which stands on ${image}`);
    }
    return OriginalImage.open(real, above);
  }
  throw new PcowError(
    'PCOW_BASE_MISSING',
    `${image} stands on ${JSON.stringify(name)}, which is neither beside it nor in the working directory`,
  );
}

interface Super {
  /** Number of its block in the file. */
  at: number;
  blockSize: number;
  /** Of the virtual disk. */
  blocks: number;
  activeMeta: number;
  base: string;
}

class Reader {
  constructor(
    private readonly path: string,
    private readonly handle: FileHandle,
    private readonly length: number,
  ) {}

  async super(at: number, blockSize = 0): Promise<Super> {
    const bytes = await this.#read(at * blockSize, HEADER, 'a superblock');
    const found = {
      at,
      blockSize: bytes.readInt32LE(0),
      blocks: bytes.readInt32LE(4),
      activeMeta: bytes.readInt32LE(8),
      base: bytes.toString('latin1', 16, HEADER).split('\0')[0] ?? '',
    };
    if (!beginsLikeOriginal(bytes)) {
      throw new PcowError('PCOW_NOT_AN_IMAGE', `${this.path} is not an image of the original Pcow`);
    }
    const size = found.blockSize;
    if (
      size < 4096 ||
      size > 2 ** 30 ||
      !Number.isInteger(Math.log2(size)) ||
      (blockSize && size !== blockSize)
    ) {
      throw this.#corrupt(
        `the superblock at ${at * blockSize} gives a block size of ${size} bytes`,
      );
    }
    if (found.blocks <= 0)
      throw this.#corrupt(`the superblock at ${at * size} gives ${found.blocks} blocks`);
    if (found.activeMeta < 0)
      throw this.#corrupt(`the superblock at ${at * size} names table ${found.activeMeta}`);
    return found;
  }

  async segments(first: Super): Promise<Segment[]> {
    try {
      return await this.#walk(first, 8);
    } catch (error) {
      // Tables without bitmaps come from builds without fine-grained copying. The file does not say
      // so: only the other interpretation is invalid.
      const narrow = await this.#walk(first, 4).catch(() => null);
      if (narrow === null) throw error;
      return narrow;
    }
  }

  async #walk(first: Super, entrySize: 4 | 8): Promise<Segment[]> {
    const { blockSize } = first;
    const capacity = (blockSize - HEADER) / entrySize;
    const segments: Segment[] = [];
    // Every step moves forward in the file, so the loop ends.
    for (let current: Super | null = first; current !== null;) {
      const segment: Segment = new Map();
      let next = 0;
      for (let number = 0; number <= current.activeMeta; number += 1) {
        const meta = current.at + 1 + number * (capacity + 1);
        next =
          meta +
          1 +
          (await this.#table(
            segment,
            first,
            meta,
            capacity,
            entrySize,
            number < current.activeMeta,
          ));
      }
      segments.push(segment);
      current = await this.#nextSuper(next, blockSize);
    }
    return segments;
  }

  async #nextSuper(at: number, blockSize: number): Promise<Super | null> {
    if (at * blockSize + HEADER > this.length) return null;
    const bytes = await this.#read(at * blockSize, HEADER, 'a superblock');
    // blocks that were allocated in advance
    return beginsLikeOriginal(bytes) ? this.super(at, blockSize) : null;
  }

  /** Reads a table into the segment. Returns the number of its entries. */
  async #table(
    segment: Segment,
    { blockSize, blocks }: Super,
    meta: number,
    capacity: number,
    entrySize: 4 | 8,
    full: boolean,
  ): Promise<number> {
    const where = `the table at ${meta * blockSize}`;
    const bytes = await this.#read(meta * blockSize, blockSize, where);
    const count = bytes.readInt32LE(0);
    if (count < 0 || count > capacity || (full && count !== capacity)) {
      throw this.#corrupt(`${where} has ${count} entries; at most ${capacity} fit`);
    }
    const all = Math.min(32, blockSize / UNIT);
    const mask = all === 32 ? 0xffffffff : 2 ** all - 1;
    for (let i = 0; i < count; i += 1) {
      const block = bytes.readUInt32LE(HEADER + i * entrySize);
      const bitmap = entrySize === 8 ? bytes.readUInt32LE(HEADER + i * entrySize + 4) : 0;
      if (block >= blocks) throw this.#corrupt(`${where} names block ${block} of ${blocks}`);
      if (segment.has(block)) throw this.#corrupt(`${where} names block ${block} twice`);
      if (bitmap > mask)
        throw this.#corrupt(`${where} has an impossible bitmap for block ${block}`);
      const index = meta + 1 + i;
      if ((index + 1) * blockSize > this.length) {
        throw this.#corrupt(`it was cut short: block ${block} should be at ${index * blockSize}`);
      }
      segment.set(block, { index, bitmap });
    }
    return count;
  }

  async #read(offset: number, length: number, what: string): Promise<Buffer> {
    const buffer = Buffer.alloc(length);
    const { bytesRead } = await this.handle.read(buffer, 0, length, offset);
    if (bytesRead < length) throw this.#corrupt(`it was cut short: ${what} should be at ${offset}`);
    return buffer;
  }

  #corrupt(what: string): PcowError {
    return new PcowError(
      'PCOW_CORRUPT',
      `${this.path}, an image of the original Pcow, is damaged: ${what}`,
      {
        next: 'convert another copy of it',
      },
    );
  }
}
