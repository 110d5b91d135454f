/** The kernel's counters of what goes to a disk. */
import { existsSync, statSync } from 'node:fs';

/**
 * The "stat" file of the disk that contains `file`; null if it has no disk of its own (tmpfs,
 * btrfs).
 */
export function diskStatistics(file: string): string | null {
  const { dev } = statSync(file);
  // As glibc's makedev(3) encodes them, as far as needed here.
  const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)];
  const found = `/sys/dev/block/${major}:${minor}/stat`;
  return existsSync(found) ? found : null;
}
