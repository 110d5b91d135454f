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

const NOT_OF_FILES = [0n, ROOT_INODE];

/** A group is not swept before it has this many numbers. */
const FEW = 64;

export class InodeNumbers {
  readonly #taken = new Set<bigint>(NOT_OF_FILES);
  readonly #bits: number;

  constructor(bits: 32 | 63) {
    this.#bits = bits;
  }

  /**
   * A number for what `lasting` identifies in every mount. It stays taken until it is given back.
   */
  take(lasting: string): bigint {
    let number = this.hash(lasting);
    // By chance, or because two images have the same identification.
    while (this.#taken.has(number)) number = BigInt.asUintN(this.#bits, number + 1n);
    this.#taken.add(number);
    return number;
  }

  giveBack(number: bigint): void {
    this.#taken.delete(number);
  }

  /** How many numbers are taken by files. */
  get count(): number {
    return this.#taken.size - NOT_OF_FILES.length;
  }

  /** Does not take the number. */
  hash(lasting: string): bigint {
    return BigInt.asUintN(
      this.#bits,
      createHash('sha256').update(lasting).digest().readBigUInt64LE(),
    );
  }
}

/** The numbers of files that go together: those of one image, or those of the mount itself. */
export class InodeGroup {
  readonly #source: InodeNumbers;
  readonly #numbers = new Map<string, bigint>();
  #sweepAt = FEW;

  constructor(source: InodeNumbers) {
    this.#source = source;
  }

  /**
   * The number of the file that `key` identifies in this group. `lasting` identifies it in every
   * mount.
   */
  of(key: string, lasting: string): bigint {
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    const number = this.#source.take(lasting);
    this.#numbers.set(key, number);
    return number;
  }

  /** Does not make a number. */
  known(key: string): bigint | undefined {
    return this.#numbers.get(key);
  }

  /** The key of the file that has this number. */
  keyOf(number: bigint): string | undefined {
    for (const [key, known] of this.#numbers) if (known === number) return key;
    return undefined;
  }

  /**
   * Whether there are twice as many numbers as after the last sweep: some of the files may be gone.
   */
  get full(): boolean {
    return this.#numbers.size >= this.#sweepAt;
  }

  /** Gives back the numbers of the files that are not `present`. */
  sweep(present: (key: string) => boolean): void {
    for (const [key, number] of this.#numbers) {
      if (present(key)) continue;
      this.#numbers.delete(key);
      this.#source.giveBack(number);
    }
    this.#sweepAt = Math.max(FEW, 2 * this.#numbers.size);
  }
}

/** As fuse-native takes a number: its lower half and its upper half. */
export function halves(number: bigint): { ino: number; dev: number } {
  return { ino: Number(BigInt.asUintN(32, number)), dev: Number(number >> 32n) };
}
