import type { Command } from 'commander';
import { takingAway } from '../../src/engine/index.js';
import { askForWork } from '../control.js';
import { addNotes } from '../help.js';
import { withImage } from '../images.js';
import { say } from '../output.js';
import { type ProgressForm, progressOption, withProgress } from '../progress.js';
import { findSnapshotTarget, type ImageTarget } from '../target.js';

export function addDelete(program: Command): void {
  const command = program
    .command('delete')
    .summary('delete a snapshot')
    .description('Deletes a snapshot. What other snapshots and the image itself need of it stays.')
    .argument('<image@name>', 'the image and the snapshot to delete')
    .addOption(progressOption())
    .action(remove);
  addNotes(command, {
    text: [
      'A snapshot that other images of the directory stand on is not deleted; they are named. Images of other ' +
        'directories are not known here: keep images and their bases together.',
    ],
    examples: [
      { command: 'pcow delete vm1@before-upgrade', does: 'of an image at rest' },
      { command: 'pcow delete /mnt/vm1@before-upgrade', does: 'through the mount' },
    ],
  });
}

async function remove(given: string, { progress }: { progress?: ProgressForm }): Promise<void> {
  const { image, snapshot } = await findSnapshotTarget(given);
  if (image.mount === null) {
    await removeAtRest(image, snapshot, progress);
  } else {
    await askForWork(
      { mount: image.mount, name: image.name },
      'delete',
      snapshot,
      `delete ${image.name}@${snapshot}`,
      progress,
    );
  }
  say(`deleted ${image.name}@${snapshot}`);
}

async function removeAtRest(target: ImageTarget, snapshot: string, form: ProgressForm | undefined): Promise<void> {
  await withImage(target.file, { write: true }, async (image) => {
    const layer = image.layerOf(snapshot);
    await takingAway({ file: target.file, what: `${target.name}@${snapshot} can't be deleted`, layer }, () =>
      withProgress(`delete ${target.name}@${snapshot}`, form, (options) => image.delete(snapshot, options)),
    );
  });
}
