import type { Command } from 'commander';
import { isPcowError } from '../../src/engine/errors.js';
import { resizeImage } from '../../src/client/change-image.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { Failure } from '../output/errors.js';
import { formatSize, parseNewSize } from '../../src/images/sizes.js';
import { findImage, type ImageTarget, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';
import { word } from '../../src/engine/quote.js';

interface Options {
  shrink?: boolean;
  json?: boolean;
  wait?: number;
}

export function addResize(program: Command): void {
  const command = program
    .command('resize')
    .summary('make an image larger or smaller')
    .description(
      'Makes an image larger, or with --shrink smaller. A new part reads as zeros. Snapshots keep their ' +
        'sizes.',
    )
    .argument('<image>', 'the image')
    .argument(
      '<size>',
      'the new size: bytes, or a number with K, M, G or T; +SIZE: larger by this size; -SIZE: smaller by ' +
        'this size',
    )
    .option('--shrink', 'make it smaller: data beyond the new end is lost')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(resize);
  addNotes(command, {
    text: [
      'An image is never smaller than the snapshot or the base that it stands on. An image in use can be ' +
        'made larger, but not smaller.',
    ],
    examples: [
      { command: 'pcow resize vm1 20G', does: 'to 20 GiB' },
      { command: 'pcow resize vm1 +5G', does: 'by 5 GiB' },
      { command: 'pcow resize vm1 5G --shrink', does: 'to 5 GiB, which discards the rest' },
      { command: 'pcow resize vm1 -10M --shrink', does: 'smaller by 10 MiB' },
    ],
  });
}

function withNextStep(error: unknown, { given }: ImageTarget): unknown {
  if (!isPcowError(error, 'PCOW_INVALID')) return error;
  const hint = `“pcow info ${word(given)}” shows what that is: “pcow delete” removes a snapshot, “pcow flatten” the base`;
  return new Failure(error.code, error.message, hint);
}

async function resize(given: string, size: string, options: Options): Promise<void> {
  const { shrink = false } = options;
  const image = await findImage(given);
  const present = await withImage(image.file, {}, (open) => open.info().size);
  const bytes = parseNewSize(size, present);
  if (bytes < present && !shrink) {
    throw new Failure(
      'PCOW_INVALID',
      `${image.name} has ${formatSize(present)}, and making it smaller loses the data after ${formatSize(bytes)}`,
      `if you want that: pcow resize ${word(given)} ${size} --shrink`,
    );
  }
  try {
    await patiently(options.wait, () =>
      resizeImage(image, bytes, { shrink: bytes < present, ...whileWaiting }),
    );
  } catch (error) {
    throw bytes < present ? withNextStep(error, image) : error;
  }
  if (options.json === true) sayJson({ image: image.file, before: present, size: bytes });
  else say(`${image.name} has ${formatSize(bytes)} now`);
}
