import type { Command } from 'commander';
import { warn } from '../errors.js';
import { addNotes } from '../help.js';
import { distanceWarning, madeImage, makeImage } from '../making.js';
import { say, sayJson } from '../output.js';
import { findTarget, newImage } from '../target.js';

export function addClone(program: Command): void {
  const command = program
    .command('clone')
    .summary('make a new image on an existing one')
    .description('Makes a new image that stands on an existing one, as it is now or at a snapshot. Nothing is copied.')
    .argument('<image[@snapshot]>', 'what to stand on')
    .argument('<new>', 'the image file to make; “.pcow” is added where it is missing')
    .option('--force', 'replace an existing file')
    .option('--json', 'for programs')
    .action(clone);
  addNotes(command, {
    text: [
      'Both images can be written from then on, and neither sees what the other writes. The new image finds its base ' +
        'relative to itself: keep them where they are to each other.',
    ],
    examples: [
      { command: 'pcow clone base vm1', does: 'vm1.pcow, on base.pcow as it is now' },
      { command: 'pcow clone vm1@before-upgrade vm1-old', does: 'a writable image of a snapshot' },
      { command: 'pcow clone /mnt/vm1 /mnt/vm2', does: 'the same through a mount' },
    ],
  });
}

async function clone(base: string, given: string, options: { force?: boolean; json?: boolean }): Promise<void> {
  const target = await newImage(given);
  const info = await makeImage(target, { base, force: options.force });
  if (options.json === true) sayJson(madeImage(target, info));
  else say(`cloned ${base} to ${target.file}`);
  const warning = distanceWarning(target, (await findTarget(base)).image);
  if (warning !== null) warn('pcow', warning);
}
