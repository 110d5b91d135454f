import { unlink } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { removeRemains } from '../../src/drafts.js';
import { dependants, Image, isPcowError } from '../../src/engine/index.js';
import { explainOperation } from '../control.js';
import { Failure } from '../errors.js';
import { addNotes } from '../help.js';
import { say, sayJson } from '../output.js';
import { quote } from '../quote.js';
import { refuseWhereStoodOn } from '../standing.js';
import { findTarget, flatFile, type ImageTarget } from '../target.js';

export function addRm(program: Command): void {
  const command = program
    .command('rm')
    .summary('delete images')
    .description('Deletes images, with their snapshots. One that others of its directory stand on is not deleted.')
    .argument('<image...>', 'the images; bases may come before what stands on them')
    .option('--json', 'for programs')
    .action(rm);
  addNotes(command, {
    text: ['Also a damaged image, or one whose base is missing, is deleted; an image that is in use is not.'],
    examples: [
      { command: 'pcow rm vm1', does: 'deletes vm1.pcow' },
      { command: 'pcow rm base vm1', does: 'a base, and what stands on it' },
    ],
  });
}

async function rm(given: string[], { json }: { json?: boolean }): Promise<void> {
  const images = await Promise.all(given.map(imageToRemove));
  const twice = images.find(({ file }, i) => images.findIndex((it) => it.file === file) !== i);
  if (twice !== undefined) {
    throw new Failure('PCOW_USAGE', `the image ${twice.name} is named twice`, 'name each image once');
  }
  // What stands on others goes first; all is looked at before the first one is deleted.
  const ordered: ImageTarget[] = [];
  for (let left = images; left.length > 0;) {
    const free: ImageTarget[] = [];
    for (const image of left) {
      const standing = await dependants(path.dirname(image.file), image.file);
      const gone = (file: string) => ordered.some((it) => it.file === file);
      if (standing.every((one) => gone(one.image))) free.push(image);
    }
    const [blocked] = left;
    if (free.length === 0 && blocked !== undefined) {
      await refuseWhereStoodOn(blocked.file, `${blocked.file} can't be deleted`);
    }
    ordered.push(...free);
    left = left.filter((image) => !free.includes(image));
  }
  for (const image of ordered) {
    await remove(image);
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
      `to delete the snapshot: pcow delete ${given}`,
    );
  }
  return image;
}

async function remove(image: ImageTarget): Promise<void> {
  const { mount } = image;
  if (mount !== null) {
    await unlink(flatFile(image, mount)).catch(async (error: unknown) => {
      throw await explainOperation(error, mount, image.name, `rm ${image.name}`);
    });
    return;
  }
  let open: Image | null = null;
  try {
    open = await Image.open(image.file, { write: true });
  } catch (error) {
    // Whoever holds its lock would have been told apart first.
    if (!isPcowError(error, 'PCOW_CORRUPT', 'PCOW_BASE_MISSING', 'PCOW_BASE_CHANGED', 'PCOW_BASE_LOOP')) throw error;
  }
  await unlink(image.file);
  await open?.close();
  await removeRemains(path.dirname(image.file));
}
