import type { Command } from 'commander';
import { askImage } from '../control.js';
import { addNotes } from '../help.js';
import { withImage } from '../images.js';
import { say } from '../output.js';
import { findSnapshotTarget } from '../target.js';

export function addRollback(program: Command): void {
  const command = program
    .command('rollback')
    .summary('go back to a snapshot')
    .description('Makes an image hold what a snapshot holds. What was written since the last snapshot is gone.')
    .argument('<image@name>', 'the image and the snapshot to go back to')
    .action(rollback);
  addNotes(command, {
    text: ['No snapshot is lost, later ones included. The image must not be in use by a guest.'],
    examples: [
      { command: 'pcow rollback vm1@before-upgrade', does: 'of an image at rest' },
      { command: 'pcow rollback /mnt/vm1@before-upgrade', does: 'through the mount' },
    ],
  });
}

async function rollback(given: string): Promise<void> {
  const { image, snapshot } = await findSnapshotTarget(given);
  if (image.mount === null) {
    await withImage(image.file, { write: true }, (open) => open.rollback(snapshot));
  } else {
    await askImage(image.mount, image.name, 'rollback', snapshot);
  }
  say(`${image.name} is back at ${snapshot}`);
}
