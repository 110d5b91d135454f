/** Compares two contents, byte by byte, without reading ranges that are zeros in both. */
import { type LongOptions, PcowError } from '../engine/index.js';
import type { Contents, Range } from './contents.js';

/** The result of compareContents(). */
export type Comparison =
  | {
      /** They are equal. */
      same: true;
    }
  | {
      /** They differ. */
      same: false;
      /**
       * The first byte that differs, or the start of a range that is allocated in only one of them
       * (strict only).
       */
      offset: number;
      /** What differs there; `allocation` and `size` only with `strict`. */
      why: 'content' | 'allocation' | 'size';
    };

/** Bytes per read. */
const STEP = 1 << 20;

/**
 * Compares byte by byte; progress is in bytes of the longer content. `strict`: the sizes must be
 * equal, and what is allocated in one must be allocated in the other. Otherwise the rest of the
 * longer one must be zeros. Errors: PCOW_CANCELLED, and those of reading.
 */
export async function compareContents(
  left: Contents,
  right: Contents,
  { strict, signal, onProgress }: LongOptions & { strict: boolean },
): Promise<Comparison> {
  const shorter = Math.min(left.size, right.size);
  const total = Math.max(left.size, right.size);
  if (strict && left.size !== right.size) return { same: false, offset: shorter, why: 'size' };
  const buffers = [Buffer.alloc(STEP), Buffer.alloc(STEP)] as const;
  for await (const { offset, length, first, second } of together(
    left.ranges(signal),
    right.ranges(signal),
  )) {
    if (strict && first !== second) return { same: false, offset, why: 'allocation' };
    for (let at = offset; (first || second) && at < offset + length; at += STEP) {
      if (signal?.aborted) {
        throw new PcowError('PCOW_CANCELLED', 'the comparison was stopped', {
          cause: signal.reason,
        });
      }
      const step = Math.min(STEP, offset + length - at);
      const [one, other] = await Promise.all([
        bytesOf(left, first, buffers[0].subarray(0, step), at),
        bytesOf(right, second, buffers[1].subarray(0, step), at),
      ]);
      if (!one.equals(other)) {
        return {
          same: false,
          offset: at + one.findIndex((byte, index) => byte !== other[index]),
          why: 'content',
        };
      }
      onProgress?.(at + step, total);
    }
    onProgress?.(offset + length, total);
  }
  return { same: true };
}

async function bytesOf(
  contents: Contents,
  data: boolean,
  buffer: Buffer,
  offset: number,
): Promise<Buffer> {
  if (data) await contents.read(buffer, offset);
  else buffer.fill(0);
  return buffer;
}

/** Splits two lists of ranges at each other's ends. Beyond its end a content has no data. */
async function* together(left: AsyncIterable<Range>, right: AsyncIterable<Range>) {
  const iterators = [left[Symbol.asyncIterator](), right[Symbol.asyncIterator]()] as const;
  const next = async (side: 0 | 1) =>
    ((await iterators[side].next()) as IteratorResult<Range, undefined>).value;
  const now = [await next(0), await next(1)];
  for (let at = 0; ;) {
    for (const side of [0, 1] as const) {
      while (now[side] !== undefined && now[side].offset + now[side].length <= at)
        now[side] = await next(side);
    }
    const ends = now
      .filter((range) => range !== undefined)
      .map((range) => range.offset + range.length);
    if (ends.length === 0) return;
    const end = Math.min(...ends);
    yield {
      offset: at,
      length: end - at,
      first: now[0]?.data ?? false,
      second: now[1]?.data ?? false,
    };
    at = end;
  }
}
