/** The disk space that an image file takes. docs/format.md describes its parts. */
import type { LongOptions } from '../engine/index.js';
import type { Contents } from './contents.js';

/** The disk space of an image. */
export interface Measure {
  /** Bytes that an image takes after the content has been copied into it. */
  required: number;
  /** Bytes that it takes after all of it has been written. */
  fullyAllocated: number;
}

const PAGE = 4096;
const ENTRIES_PER_PAGE = PAGE / 8;
/** Bytes that an image with data reserves for deletions on a full disk; one block is added. */
const RESERVE = 128 << 10;

/**
 * Measures an image of `size` bytes in blocks of `blockSize` bytes that will hold `contents`, or an
 * empty one if there are no contents.
 */
export async function measure(
  size: number,
  blockSize: number,
  contents: Contents | null,
  { signal, onProgress }: LongOptions = {},
): Promise<Measure> {
  const unit = Math.max(PAGE, blockSize / 16);
  const units = new Counter(unit);
  const pages = new Counter(ENTRIES_PER_PAGE * blockSize);
  if (contents !== null) {
    for await (const { offset, length, data } of contents.ranges(signal)) {
      if (data) {
        units.add(offset, length);
        pages.add(offset, length);
      }
      onProgress?.(offset + length, contents.size);
    }
  }
  // The two superblock slots, and a layer directory with one layer.
  const fixed = Math.max(2 * PAGE, blockSize) + blockSize;
  const reserve = Math.ceil((RESERVE + blockSize) / blockSize) * blockSize;
  const table = Math.ceil(Math.ceil(size / blockSize) / ENTRIES_PER_PAGE) * PAGE;
  return {
    required: fixed + pages.count * PAGE + units.count * unit + (units.count ? reserve : 0),
    fullyAllocated: fixed + table + reserve + Math.ceil(size / blockSize) * blockSize,
  };
}

/** How many units of one size are touched by ascending ranges. */
class Counter {
  count = 0;
  #end = 0;

  constructor(readonly unit: number) {}

  add(offset: number, length: number): void {
    const first = Math.max(this.#end, Math.floor(offset / this.unit));
    this.#end = Math.max(this.#end, Math.ceil((offset + length) / this.unit));
    this.count += Math.max(0, this.#end - first);
  }
}
