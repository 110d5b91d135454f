import path from 'node:path';
import type { Command } from 'commander';
import { checkUnused, umount } from '../../src/mount/daemon/umount.js';
import { mountOnTheWay } from '../../src/images/mount-life.js';
import { mountsOfDirectory } from '../../src/images/mount-table.js';
import { Failure, warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { quote } from '../../src/engine/quote.js';

/** Milliseconds. */
const WORD_AFTER = 3000;

export function addUmount(program: Command): void {
  const command = program
    .command('umount')
    .summary('end a mount')
    .description('Ends a mount. Returns when the last sync is done and every image is closed.')
    .argument('<mountpoint>', 'where it is mounted, or the image directory')
    .option('-n, --dry-run', 'end nothing; only fail where a process still uses the mount')
    .option('--json', 'for programs')
    .action(
      async (given: string, { json, dryRun = false }: { json?: boolean; dryRun?: boolean }) => {
        const mountpoint = await mountpointOf(given);
        const slow = setTimeout(() => {
          warn(
            'pcow',
            `waiting for the mount on ${mountpoint} to end: its last sync may take long`,
          );
        }, WORD_AFTER);
        try {
          await (dryRun ? checkUnused(mountpoint) : umount(mountpoint));
        } finally {
          clearTimeout(slow);
        }
        if (json === true) sayJson({ mountpoint: path.resolve(mountpoint), dryRun });
        else say(dryRun ? `no process uses ${mountpoint}` : `${mountpoint} is unmounted`);
      },
    );
  addNotes(command, {
    text: [
      'A mount that a process still uses is not ended. The remains of a mount that died are removed.',
    ],
    examples: [
      { command: 'pcow umount /mnt', does: 'ends the mount on /mnt' },
      { command: 'pcow umount /srv/images', does: 'ends the mount of the images there' },
    ],
  });
}

/** The path as given, unless it is an image directory that is mounted elsewhere. */
async function mountpointOf(given: string): Promise<string> {
  if ((await mountOnTheWay(given)) !== null) return given;
  // it does not exist: the error about mountpoints says so
  const mounts = await mountsOfDirectory(given).catch(() => []);
  const [mount, other] = mounts;
  if (mount === undefined) return given;
  if (other !== undefined) {
    throw new Failure(
      'PCOW_USAGE',
      `${quote(given)} is mounted on ${mounts.map(({ mountpoint }) => mountpoint).join(' and ')}`,
      'name the mountpoint',
    );
  }
  return mount.mountpoint;
}
