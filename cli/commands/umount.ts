import type { Command } from 'commander';
import { umount } from '../../src/mount/index.js';
import { addNotes } from '../help.js';
import { say } from '../output.js';

export function addUmount(program: Command): void {
  const command = program
    .command('umount')
    .summary('end a mount')
    .description('Ends a mount. Returns when the last sync is done and every image is closed.')
    .argument('<mountpoint>', 'where it is mounted')
    .action(async (mountpoint: string) => {
      await umount(mountpoint);
      say(`${mountpoint} is unmounted`);
    });
  addNotes(command, {
    text: ['A mount that a process still uses is not ended. The remains of one that died are cleared away.'],
    examples: [{ command: 'pcow umount /mnt', does: 'ends the mount on /mnt' }],
  });
}
