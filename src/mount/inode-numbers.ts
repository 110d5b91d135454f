/**
 * The inode numbers that the kernel shows (option use_ino), so that the mount knows a flat file's line in /proc/PID/maps
 * without asking its own file system. fuse-native carries 32 bits.
 */
export class InodeNumbers {
  readonly #numbers = new Map<string, number>();
  #next = 2;

  /** The root's number is 1. The same key gives the same number as long as the mount lives. */
  of(key: string): number {
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.#next;
      this.#next = this.#next === 0xffff_fffe ? 2 : this.#next + 1;
      this.#numbers.set(key, number);
    }
    return number;
  }
}

export const ROOT_INODE = 1;
