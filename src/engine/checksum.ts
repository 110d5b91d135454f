import { addon } from './native.js';

/** CRC-32C of the bytes; `seed` is the checksum of the bytes before them. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return addon().crc32c(bytes, seed);
}
