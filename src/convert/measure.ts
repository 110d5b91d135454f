/** What an image file takes on its disk. The places are those of docs/format.md. */
import type { LongOptions } from '../engine/index.js';
import type { Contents } from './contents.js';

/** What an image takes on its disk. */
export interface Measure {
  /** Bytes that an image takes once the content has been copied into it. */
  required: number;
  /** Bytes that it takes once all of it has been written. */
  fullyAllocated: number;
}

const PAGE = 4096;
const ENTRIES_PER_PAGE = PAGE / 8;
/** What an image that holds data keeps for deletions on a full disk, and a block. */
const RESERVE = 128 << 10;

/** Of an image of `size` bytes in blocks of `blockSize` bytes that is to hold `contents`, or of an empty one where there are none. */
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
  // The two superblock slots, and a directory of one layer.
  const fixed = Math.max(2 * PAGE, blockSize) + blockSize;
  const reserve = Math.ceil((RESERVE + blockSize) / blockSize) * blockSize;
  const table = Math.ceil(Math.ceil(size / blockSize) / ENTRIES_PER_PAGE) * PAGE;
  return {
    required: fixed + pages.count * PAGE + units.count * unit + (units.count ? reserve : 0),
    fullyAllocated: fixed + table + reserve + Math.ceil(size / blockSize) * blockSize,
  };
}

/** How many units of a size ascending ranges touch. */
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
