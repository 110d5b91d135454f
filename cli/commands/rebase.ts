import type { Command } from 'commander';
import { rebaseImage, rebaseUnsafely } from '../../src/client/change-image.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { findImage, findTarget, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addRebase(program: Command): void {
  const command = program
    .command('rebase')
    .summary('put an image on another base')
    .description(
      'Puts an image on another base. Its content stays the same: data that differs between the two bases ' +
        'is copied.',
    )
    .argument('<image>', 'the image')
    .requiredOption(
      '-b, --base <image[@snapshot]>',
      'the new base; empty (""): no base, as with “pcow flatten”',
    )
    .option(
      '-u, --unsafe',
      'only change the name of the base, without comparing contents: for a base that was moved or copied',
    )
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(rebase);
  addNotes(command, {
    text: [
      'Snapshots keep their content as well. If you stop the command in the middle, the image still stands ' +
        'on the old base. With --unsafe the old base need not exist any more, and the new one must hold the ' +
        'same data, or the content of the image changes. If the new base is the old one at another path, you ' +
        'need not name its snapshot.',
    ],
    examples: [
      { command: 'pcow rebase vm1 --base base@patched', does: 'on a newer snapshot of its base' },
      { command: 'pcow rebase vm1 --base ""', does: 'on no base' },
      {
        command: 'pcow rebase vm1 --unsafe --base ../bases/base',
        does: 'after its base was moved',
      },
    ],
  });
}

interface Options {
  base: string;
  unsafe?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

async function rebase(
  given: string,
  { base: newBase, unsafe, json, wait, progress }: Options,
): Promise<void> {
  const image = await findImage(given);
  const base = newBase === '' ? null : await findTarget(newBase);
  await patiently(wait, () =>
    unsafe === true
      ? rebaseUnsafely(image, base, whileWaiting)
      : withProgress(`rebase ${image.name}`, progress, (long) =>
          rebaseImage(image, base, { ...long, ...whileWaiting }),
        ),
  );
  if (json === true)
    sayJson({
      image: image.file,
      base: base && { path: base.image.file, snapshot: base.snapshot },
    });
  else
    say(
      base === null
        ? `${image.name} no longer stands on a base`
        : `${image.name} now stands on ${newBase}`,
    );
}
