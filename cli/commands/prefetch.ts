import type { Command } from 'commander';
import { lazyImagesOf, prefetchImage } from '../../src/client/prefetch.js';
import { isPcowError } from '../../src/engine/errors.js';
import { formatSize } from '../../src/images/sizes.js';
import { findImage, whileWaiting } from '../find-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { say, sayJson } from '../output/stdout.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options {
  limit?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

export function addPrefetch(program: Command): void {
  const command = program
    .command('prefetch')
    .summary('fetch everything that a lazy image lacks')
    .description(
      'Fetches all bytes of a lazy image, and of lazy images on which it stands, from their registry. ' +
        'Afterwards they are ordinary images.',
    )
    .argument('<image>', 'the image')
    .option('--no-limit', 'remove the limit of an image that may not keep everything')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(prefetch);
  addNotes(command, {
    text: [
      'If the directory is mounted, the mount does it, and guests go on meanwhile. ' +
        'What has arrived is kept: run the command again after an interruption.',
    ],
    examples: [
      { command: 'pcow prefetch golden', does: 'of an image made with “pcow pull --lazy”' },
      { command: 'pcow prefetch /mnt/vm1', does: 'of what vm1 stands on, while its guest runs' },
    ],
  });
}

async function prefetch(given: string, { limit, json, wait, progress }: Options): Promise<void> {
  const image = await findImage(given);
  const lazy = await lazyImagesOf(image, whileWaiting);
  for (const { image: one } of lazy) {
    await patiently(wait, () =>
      withProgress(`prefetch ${one.name}`, progress, (long) =>
        prefetchImage(one, { noLimit: limit === false, ...long, ...whileWaiting }),
      ),
    ).catch((error: unknown) => {
      throw explained(error);
    });
  }
  if (json === true) {
    const images = lazy.map(({ image: { name, file }, remote }) => ({ name, file, remote }));
    sayJson({ image: image.name, file: image.file, fetched: images });
  } else if (lazy.length === 0) {
    say(`${image.name} lacks nothing`);
  } else {
    for (const { image: one, remote } of lazy)
      say(`${one.name} is complete: ${formatSize(remote)} fetched`);
  }
}

function explained(error: unknown): unknown {
  return isPcowError(error, 'PCOW_CANCELLED', 'PCOW_NO_SPACE') && error.next === undefined
    ? new Failure(error.code, error.message, 'what has arrived is kept: run the same command again')
    : error;
}
