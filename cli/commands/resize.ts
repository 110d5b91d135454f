import type { Command } from 'commander';
import { askImage } from '../control.js';
import { addNotes } from '../help.js';
import { withImage } from '../images.js';
import { say } from '../output.js';
import { formatSize, parseSize } from '../size.js';
import { findImage } from '../target.js';

export function addResize(program: Command): void {
  const command = program
    .command('resize')
    .summary('make an image larger')
    .description('Makes an image larger. The new part reads as zeros; snapshots keep their sizes.')
    .argument('<image>', 'the image')
    .argument('<size>', 'the new size: bytes, or with K, M, G or T')
    .action(resize);
  addNotes(command, {
    examples: [{ command: 'pcow resize vm1 20G', does: 'to 20 GiB' }],
  });
}

async function resize(given: string, size: string): Promise<void> {
  const bytes = parseSize(size);
  const image = await findImage(given);
  if (image.mount === null) {
    await withImage(image.file, { write: true }, (open) => open.resize(bytes));
  } else {
    await askImage(image.mount, image.name, 'resize', String(bytes));
  }
  say(`${image.name} has ${formatSize(bytes)} now`);
}
