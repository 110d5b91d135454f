import type { Command } from 'commander';
import { orderOfRemoval, removeImage } from '../../src/client/change-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { quote, word } from '../../src/engine/quote.js';
import { findTarget, type ImageTarget, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addRm(program: Command): void {
  const command = program
    .command('rm')
    .summary('delete images')
    .description(
      'Deletes images with their snapshots. An image that others in its directory stand on is not deleted.',
    )
    .argument('<image...>', 'the images; bases may come before the images that stand on them')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(rm);
  addNotes(command, {
    text: [
      'Damaged images, and images whose base is missing, are deleted as well. An image in use is not ' +
        'deleted.',
    ],
    examples: [
      { command: 'pcow rm vm1', does: 'deletes vm1.pcow' },
      { command: 'pcow rm base vm1', does: 'a base, and the image that stands on it' },
    ],
  });
}

async function rm(
  given: string[],
  { json, wait }: { json?: boolean; wait?: number },
): Promise<void> {
  const images = await Promise.all(given.map(imageToRemove));
  const twice = images.find(({ file }, i) => images.findIndex((it) => it.file === file) !== i);
  if (twice !== undefined) {
    throw new Failure(
      'PCOW_USAGE',
      `the image ${twice.name} is listed twice`,
      'list each image once',
    );
  }
  // Images that stand on others are deleted first. Everything is checked before the first one is
  // deleted.
  const ordered = await orderOfRemoval(images);
  for (const image of ordered) {
    await patiently(wait, () => removeImage(image, whileWaiting));
    if (json !== true) say(`deleted ${image.file}`);
  }
  if (json === true) sayJson({ deleted: ordered.map(({ file }) => file) });
}

async function imageToRemove(given: string): Promise<ImageTarget> {
  const { image, snapshot } = await findTarget(given);
  if (snapshot !== null) {
    throw new Failure(
      'PCOW_USAGE',
      `${quote(given)} is a snapshot, and rm deletes whole images`,
      `to delete the snapshot: pcow delete ${word(given)}`,
    );
  }
  return image;
}
