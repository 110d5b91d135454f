import { addon } from './native.js';

/** CRC-32C of the bytes; `seed` is that of what came before them. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return addon().crc32c(bytes, seed);
}
