import type { Command } from 'commander';
import { flattenImage } from '../../src/client/change-image.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { findImage, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addFlatten(program: Command): void {
  const command = program
    .command('flatten')
    .summary('copy everything from the base, and stand on no base')
    .description(
      'Copies into an image everything that it, or a snapshot of it, reads from its base. Then it stands ' +
        'on no base.',
    )
    .argument('<image>', 'the image')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(flatten);
  addNotes(command, {
    text: [
      'The content of the image and of its snapshots stays the same. If you stop the command in the ' +
        'middle, the image stands on its base as before.',
    ],
    examples: [
      { command: 'pcow flatten vm1', does: 'before vm1.pcow goes to another machine' },
      { command: 'pcow flatten /mnt/vm1', does: 'through the mount, also while it is in use' },
    ],
  });
}

interface Options {
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

async function flatten(given: string, { json, wait, progress }: Options): Promise<void> {
  const image = await findImage(given);
  await patiently(wait, () =>
    withProgress(`flatten ${image.name}`, progress, (long) =>
      flattenImage(image, { ...long, ...whileWaiting }),
    ),
  );
  if (json === true) sayJson({ image: image.file, base: null });
  else say(`${image.name} no longer stands on a base`);
}
