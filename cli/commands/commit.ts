import type { Command } from 'commander';
import { commitImage } from '../../src/client/change-image.js';
import { advising } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { findImage, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';
import { word } from '../../src/engine/quote.js';

export function addCommit(program: Command): void {
  const command = program
    .command('commit')
    .summary('move what the image has written into its base')
    .description(
      'Moves what an image has written into its base, as a new snapshot there. Then the image stands on ' +
        'that snapshot, and holds nothing itself.',
    )
    .argument('<image>', 'the image; it must have no snapshots')
    .option('--name <name>', 'of the new snapshot of the base; default: an automatic name')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(commit);
  addNotes(command, {
    text: [
      'Other images on the same base are not changed: they still stand on the snapshot that they stood on. ' +
        'Afterwards the base itself has the committed content, unless the base was written since the image ' +
        'was made on it; then its present content stays, and only its new snapshot has the committed ' +
        'content.',
      'Neither the image nor its base may be in use.',
    ],
    examples: [
      { command: 'pcow commit vm1', does: 'into its base' },
      { command: 'pcow commit vm1 --name patched', does: 'as BASE@patched' },
    ],
  });
}

interface Options {
  name?: string;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

async function commit(given: string, { name, json, wait, progress }: Options): Promise<void> {
  const image = await findImage(given);
  const steps = {
    PCOW_IN_USE: `“pcow list ${word(given)}” shows them; a clone: pcow clone ${word(given)} NEW`,
    ...(image.mount && { PCOW_BASE_OUTSIDE: `pcow umount ${word(image.mount.mountpoint)}` }),
  };
  const { base, snapshot, followed } = await patiently(wait, () =>
    advising(steps, () =>
      withProgress(`commit ${image.name}`, progress, (long) =>
        commitImage(image, { name, ...long, ...whileWaiting }),
      ),
    ),
  );
  if (json === true) {
    sayJson({ image: image.file, base: base.file, snapshot, followed });
  } else {
    say(`${image.name} is committed to ${base.name}@${snapshot}, and stands on it`);
    if (!followed)
      say(
        `${base.name} was written since: its present content stays, and does not include this snapshot`,
      );
  }
}
