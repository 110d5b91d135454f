import type { Command } from 'commander';
import { compactImage } from '../../src/client/change-image.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { formatSize } from '../../src/images/sizes.js';
import { findImage, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addCompact(program: Command): void {
  const command = program
    .command('compact')
    .summary('give back blocks that hold only zeros')
    .description(
      'Gives the blocks of an image and its snapshots that hold only zeros back to the filesystem.',
    )
    .argument('<image>', 'the image')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(compact);
  addNotes(command, {
    text: [
      'Only “du” shows a difference. A guest that discards what it deletes (fstrim, mount -o discard) does ' +
        'not need this command. In other guests, fill the free space of the filesystems with zeros first.',
    ],
    examples: [
      { command: 'pcow compact vm1', does: 'of an image that is not mounted' },
      { command: 'pcow compact /mnt/vm1', does: 'through the mount, also while it is in use' },
    ],
  });
}

interface Options {
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

async function compact(given: string, { json, wait, progress }: Options): Promise<void> {
  const image = await findImage(given);
  const diskUse = () => withImage(image.file, {}, (open) => open.info().diskUse);
  const before = await diskUse();
  await patiently(wait, () =>
    withProgress(`compact ${image.name}`, progress, (long) =>
      compactImage(image, { ...long, ...whileWaiting }),
    ),
  );
  const after = await diskUse();
  if (json === true) sayJson({ image: image.file, before, after });
  else
    say(
      `${image.name} now takes ${formatSize(after)}, ${formatSize(Math.max(0, before - after))} less than before`,
    );
}
