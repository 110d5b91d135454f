/** Where the kernel counts what goes to a disk. */
import { existsSync, statSync } from 'node:fs';

/** The "stat" file of the disk that holds `file`; null where it has none of its own (tmpfs, btrfs). */
export function diskStatistics(file: string): string | null {
  const { dev } = statSync(file);
  // As glibc's makedev(3) packs them, as far as that is used.
  const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)];
  const found = `/sys/dev/block/${major}:${minor}/stat`;
  return existsSync(found) ? found : null;
}
