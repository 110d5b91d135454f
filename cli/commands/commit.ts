import type { Command } from 'commander';
import { automaticName } from '../../src/images/automatic-name.js';
import type { Image } from '../../src/engine/index.js';
import { askForWork } from '../control.js';
import { advising, Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../images.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { findImage, type ImageTarget } from '../target.js';
import { patiently, waitOption } from '../wait-option.js';
import { word } from '../quote.js';

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
  const { base } = await withImage(image.file, {}, (open) => open.info());
  if (base === null) {
    throw new Failure(
      'PCOW_INVALID',
      `${image.name} has no base to commit to`,
      'pcow info shows what an image stands on',
    );
  }
  const into = await findImage(base.resolved);
  const snapshot = name ?? automaticName();
  const steps = {
    PCOW_IN_USE: `“pcow list ${word(given)}” shows them; a clone: pcow clone ${word(given)} NEW`,
    ...(image.mount && { PCOW_BASE_OUTSIDE: `pcow umount ${word(image.mount.mountpoint)}` }),
  };
  if (image.mount !== null) {
    const mounted = { mount: image.mount, name: image.name };
    await patiently(wait, () =>
      advising(steps, () => askForWork(mounted, 'commit', snapshot, `commit ${image.name}`, progress)),
    );
  } else if (into.mount !== null) {
    throw new Failure(
      'PCOW_BUSY',
      `the base ${into.file} is mounted on ${into.mount.mountpoint}, and ${image.name} is not`,
      `end that mount first: pcow umount ${word(into.mount.mountpoint)}`,
    );
  } else {
    await patiently(wait, () =>
      advising(steps, () => commitAtRest(image, into, snapshot, { automatic: name === undefined, progress })),
    );
  }
  const followed = await withImage(into.file, {}, (open) => open.info().chain[1]?.snapshot === snapshot);
  if (json === true) {
    sayJson({ image: image.file, base: into.file, snapshot, followed });
  } else {
    say(`${image.name} is committed to ${into.name}@${snapshot}, and stands on it`);
    if (!followed) say(`${into.name} was written since: its present content stays, and is not on that snapshot`);
  }
}

async function commitAtRest(
  image: ImageTarget,
  base: ImageTarget,
  snapshot: string,
  { automatic, progress }: { automatic: boolean; progress: ProgressForm | undefined },
): Promise<void> {
  await withImage(image.file, { write: true }, (open: Image) =>
    withImage(base.file, { write: true }, (into) =>
      withProgress(`commit ${image.name}`, progress, (options) =>
        open.commitInto(into, snapshot, { ...options, automatic }),
      ),
    ),
  );
}
