/**
 * The inode numbers that the kernel shows (option use_ino). They are the same in every mount for
 * the same image, snapshot or control file, so that backup programs recognise files. They are
 * different within a mount, so that the mount recognises a flat file in /proc/PID/maps without a
 * request to its own filesystem.
 *
 * Each number is a hash of what identifies the file, of 63 bits, because some programs treat inode
 * numbers as signed. fuse-native passes 32 bits. With native operations, the other bits are passed
 * in its field for the device (join_inode() in fuse_operations.cc).
 */
import { createHash } from 'node:crypto';

export const ROOT_INODE = 1n;

export class InodeNumbers {
  readonly #numbers = new Map<string, bigint>();
  readonly #taken = new Set<bigint>([0n, ROOT_INODE]);
  readonly #bits: number;

  constructor(bits: 32 | 63) {
    this.#bits = bits;
  }

  /**
   * The number of the file that `key` identifies in this mount. `lasting` identifies it in every
   * mount.
   */
  of(key: string, lasting = key): bigint {
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    let number = BigInt.asUintN(this.#bits, createHash('sha256').update(lasting).digest().readBigUInt64LE());
    // By chance, or because two images have the same identification.
    while (this.#taken.has(number)) number = BigInt.asUintN(this.#bits, number + 1n);
    this.#numbers.set(key, number);
    this.#taken.add(number);
    return number;
  }

  /** Does not make a number. */
  known(key: string): bigint | undefined {
    return this.#numbers.get(key);
  }
}

/** As fuse-native takes a number: its lower half and its upper half. */
export function halves(number: bigint): { ino: number; dev: number } {
  return { ino: Number(BigInt.asUintN(32, number)), dev: Number(number >> 32n) };
}
