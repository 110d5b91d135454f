/**
 * Copies a content to a target, sparsely: zeros are never written where the target has no data yet.
 */
import { PcowError, type LongOptions } from '../engine/index.js';
import type { Contents } from './contents.js';

export interface Target {
  write(buffer: Uint8Array, offset: number): Promise<unknown>;
  /**
   * For a target with data: reads its content, and turns a range into zeros. Default: the target is
   * empty.
   */
  present?: {
    read(buffer: Uint8Array, offset: number): Promise<unknown>;
    discard(offset: number, length: number): Promise<void>;
  };
}

/** Bytes per read. */
const STEP = 1 << 20;
/** Bytes; the unit in which zeros are found. */
const PIECE = 4096;
const ZEROS = Buffer.alloc(PIECE);

export async function copyContents(
  source: Contents,
  target: Target,
  { signal, onProgress }: LongOptions = {},
): Promise<void> {
  const buffer = Buffer.alloc(STEP);
  const other = Buffer.alloc(STEP);
  for await (const { offset, length, data } of source.ranges(signal)) {
    for (let at = offset; (data || target.present) && at < offset + length; at += STEP) {
      if (signal?.aborted)
        throw new PcowError('PCOW_CANCELLED', 'copying was stopped', { cause: signal.reason });
      const bytes = buffer.subarray(0, Math.min(STEP, offset + length - at));
      if (data) await source.read(bytes, at);
      else bytes.fill(0);
      const present = target.present && other.subarray(0, bytes.length);
      if (present) await target.present?.read(present, at);
      await copyPieces(bytes, present, target, at);
      onProgress?.(at + bytes.length, source.size);
    }
    onProgress?.(offset + length, source.size);
  }
}

type Kind = 'keep' | 'zero' | 'data';

/**
 * Handles consecutive pieces of one kind together. `at`: the offset of the bytes in the content.
 */
async function copyPieces(
  bytes: Buffer,
  present: Buffer | undefined,
  target: Target,
  at: number,
): Promise<void> {
  let start = 0;
  let kind: Kind = 'keep';
  const flush = async (end: number) => {
    if (kind === 'data') await target.write(bytes.subarray(start, end), at + start);
    if (kind === 'zero') await target.present?.discard(at + start, end - start);
    start = end;
  };
  for (let from = 0; from < bytes.length; from += PIECE) {
    const next = kindOf(bytes.subarray(from, from + PIECE), present?.subarray(from, from + PIECE));
    if (next !== kind) {
      await flush(from);
      kind = next;
    }
  }
  await flush(bytes.length);
}

function kindOf(piece: Buffer, present: Buffer | undefined): Kind {
  const zero = piece.equals(ZEROS.subarray(0, piece.length));
  if (present ? present.equals(piece) : zero) return 'keep';
  return zero ? 'zero' : 'data';
}
