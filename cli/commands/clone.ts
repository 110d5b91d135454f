import type { Command } from 'commander';
import { warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { distanceWarning, makeImage } from '../../src/client/make-image.js';
import { madeImage } from '../output/made-image.js';
import { say, sayJson } from '../output/stdout.js';
import { findTarget, newImage, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addClone(program: Command): void {
  const command = program
    .command('clone')
    .summary('make a new image on an existing one')
    .description(
      'Makes a new image that stands on an existing image, on its present content or on a snapshot. ' +
        'Nothing is copied.',
    )
    .argument('<image[@snapshot]>', 'the image to stand on, or a snapshot of it')
    .argument('<new>', 'the image file to make; “.pcow” is added if it is missing')
    .option('--force', 'replace an existing file')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(clone);
  addNotes(command, {
    text: [
      'Afterwards both images can be written, and neither sees what the other writes. The new image finds ' +
        'its base by a relative path: if you move one of them, move both together.',
    ],
    examples: [
      { command: 'pcow clone base vm1', does: 'vm1.pcow, on the present content of base.pcow' },
      { command: 'pcow clone vm1@before-upgrade vm1-old', does: 'a writable image of a snapshot' },
      { command: 'pcow clone /mnt/vm1 /mnt/vm2', does: 'the same through a mount' },
    ],
  });
}

interface Options {
  force?: boolean;
  json?: boolean;
  wait?: number;
}

async function clone(from: string, given: string, { force, json, wait }: Options): Promise<void> {
  const target = await newImage(given);
  const base = await findTarget(from);
  const info = await patiently(wait, () => makeImage(target, { base, force, ...whileWaiting }));
  if (json === true) sayJson(madeImage(target, info));
  else say(`cloned ${from} to ${target.file}`);
  const warning = distanceWarning(target, base.image);
  if (warning !== null) warn('pcow', warning);
}
