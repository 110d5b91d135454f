import type { Command } from 'commander';
import { warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { distanceWarning, madeImage, makeImage } from '../making.js';
import { say, sayJson } from '../output/stdout.js';
import { findTarget, newImage } from '../target.js';
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

async function clone(base: string, given: string, options: Options): Promise<void> {
  const target = await newImage(given);
  const info = await patiently(options.wait, () => makeImage(target, { base, force: options.force }));
  if (options.json === true) sayJson(madeImage(target, info));
  else say(`cloned ${base} to ${target.file}`);
  const warning = distanceWarning(target, (await findTarget(base)).image);
  if (warning !== null) warn('pcow', warning);
}
