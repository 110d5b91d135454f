/** Single zstd frames, made and read on other threads: Node 20 has no zstd. */
import { translated } from './errors.js';
import { addon } from './native.js';

/** One frame, with its content size in the header, without a checksum. */
export async function compressed(bytes: Uint8Array, level: number): Promise<Buffer> {
  const into = Buffer.allocUnsafeSlow(addon().zstdBound(bytes.length));
  const length = await translated(() => addon().zstdCompress(bytes, into, level));
  return into.subarray(0, length);
}

/**
 * The content of one frame, which must have exactly `length` bytes: never more than that are
 * produced. Errors: PCOW_CORRUPT.
 */
export async function decompressed(frame: Uint8Array, length: number): Promise<Buffer> {
  const into = Buffer.allocUnsafeSlow(length);
  await translated(() => addon().zstdDecompress(frame, into));
  return into;
}
