import type { Command } from 'commander';
import { snapshotImages } from '../../src/client/change-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { findSnapshotTarget, type ImageTarget, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addSnapshot(program: Command): void {
  const command = program
    .command('snapshot')
    .summary('freeze what an image holds now, under a name')
    .description(
      'Takes a snapshot: what the image holds now, frozen under a name. It is durable when the command ends.',
    )
    .argument('<image@name...>', 'the image and the name of its new snapshot')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(snapshot);
  addNotes(command, {
    text: [
      'If the image is in a mount, it may be in use. With several images, the snapshots are one cut. Then ' +
        'all images must be in one mount, or none may be mounted, and all snapshots must have the same name.',
    ],
    examples: [
      { command: 'pcow snapshot vm1@before-upgrade', does: 'of vm1.pcow' },
      {
        command: 'pcow snapshot /mnt/vm1@before-upgrade',
        does: 'of a mounted image, also under a running guest',
      },
      { command: 'pcow snapshot disk@s1 log@s1', does: 'of two images at one moment' },
    ],
  });
}

async function snapshot(
  givens: string[],
  { json, wait }: { json?: boolean; wait?: number },
): Promise<void> {
  // One after another, so that the first of two mistakes is reported.
  const targets: { image: ImageTarget; snapshot: string }[] = [];
  for (const given of givens) targets.push(await findSnapshotTarget(given));
  const [first] = targets;
  if (first === undefined) {
    return;
  }
  const name = first.snapshot;
  const other = targets.find((target) => target.snapshot !== name);
  if (other !== undefined) {
    throw new Failure(
      'PCOW_USAGE',
      `a snapshot of several images has one name, but two are given: ${name} and ${other.snapshot}`,
      'take them one after another, or give all the same name',
    );
  }
  const twice = targets.find(
    ({ image }, i) => targets.findIndex((it) => it.image.file === image.file) !== i,
  );
  if (twice !== undefined) {
    throw new Failure(
      'PCOW_USAGE',
      `the image ${twice.image.name} is listed twice`,
      'list each image once',
    );
  }
  const images = targets.map(({ image }) => image);
  await patiently(wait, () => snapshotImages(name, images, whileWaiting));
  if (json === true) {
    sayJson({ snapshots: images.map((image) => ({ image: image.file, snapshot: name })) });
    return;
  }
  for (const image of images) {
    say(`snapshot ${image.name}@${name} taken`);
  }
}
