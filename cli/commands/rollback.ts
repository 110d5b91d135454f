import type { Command } from 'commander';
import { rollbackImage } from '../../src/client/change-image.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { findSnapshotTarget, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addRollback(program: Command): void {
  const command = program
    .command('rollback')
    .summary('go back to a snapshot')
    .description(
      'Gives an image the content of a snapshot. What was written since the last snapshot is lost.',
    )
    .argument('<image@name>', 'the image and the snapshot to go back to')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(rollback);
  addNotes(command, {
    text: ['All snapshots are kept, including later ones. No guest may use the image.'],
    examples: [
      { command: 'pcow rollback vm1@before-upgrade', does: 'of an image that is not mounted' },
      { command: 'pcow rollback /mnt/vm1@before-upgrade', does: 'through the mount' },
    ],
  });
}

async function rollback(
  given: string,
  { json, wait }: { json?: boolean; wait?: number },
): Promise<void> {
  const { image, snapshot } = await findSnapshotTarget(given);
  await patiently(wait, () => rollbackImage(image, snapshot, whileWaiting));
  if (json === true) sayJson({ image: image.file, snapshot });
  else say(`${image.name} is back at ${snapshot}`);
}
