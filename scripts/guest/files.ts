import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository: this file is dist/scripts/guest/files.js when it runs. */
export const repository = fileURLToPath(new URL('../../../', import.meta.url));

/** The files that scripts/guest/build has made. */
export function guestFiles(): { vmlinuz: string; initramfs: string } {
  const directory = join(repository, 'build/guest');
  const files = { vmlinuz: join(directory, 'vmlinuz'), initramfs: join(directory, 'initramfs.gz') };
  if (!existsSync(files.initramfs))
    throw new Error('there is no guest yet; make it with: bash scripts/setup guest');
  return files;
}
