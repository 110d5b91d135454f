/**
 * The inode numbers that the kernel shows (option use_ino): the same in every mount for the same image, snapshot or control file, so that
 * backup programs know again what they have read; and different within a mount, so that the mount knows a flat file's line in
 * /proc/PID/maps without asking its own file system.
 *
 * They are made of what they stand for, by a hash, of 63 bits: some programs take them for signed. fuse-native carries 32 bits; where the
 * native operations are in place, the others travel in its field for the device (join_inode() in fuse_operations.cc).
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

  /** Of what `key` stands for in this mount. `lasting`: what it is known by in every mount. */
  of(key: string, lasting = key): bigint {
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    let number = BigInt.asUintN(this.#bits, createHash('sha256').update(lasting).digest().readBigUInt64LE());
    // By chance, or because two images are one by what they are known by.
    while (this.#taken.has(number)) number = BigInt.asUintN(this.#bits, number + 1n);
    this.#numbers.set(key, number);
    this.#taken.add(number);
    return number;
  }

  /** Without making one. */
  known(key: string): bigint | undefined {
    return this.#numbers.get(key);
  }
}

/** As fuse-native takes a number: the lower half, and the upper half. */
export function halves(number: bigint): { ino: number; dev: number } {
  return { ino: Number(BigInt.asUintN(32, number)), dev: Number(number >> 32n) };
}
