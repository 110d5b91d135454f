import { realpath } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { Failure, warn } from '../output/errors.js';
import { fileSystemOf, overwritingProblem } from '../../src/images/file-system.js';
import { addNotes } from '../output/help.js';
import { distanceWarning, makeImage } from '../../src/client/make-image.js';
import { madeImage } from '../output/made-image.js';
import { say, sayJson } from '../output/stdout.js';
import { quote, word } from '../../src/engine/quote.js';
import { formatSize, isSize, parseBlockSize, parseSize } from '../../src/images/sizes.js';
import {
  findImage,
  findTarget,
  type ImageTarget,
  newImage,
  type Target,
  whileWaiting,
} from '../find-image.js';
import {
  addRegistryOptions,
  httpOf,
  limitOption,
  type RegistryFlags,
} from '../registry-options.js';
import { exists } from '../../src/engine/drafts.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options extends RegistryFlags {
  blockSize?: string;
  base?: string;
  limit?: number;
  force?: boolean;
  json?: boolean;
  wait?: number;
}

export function addCreate(program: Command): void {
  const command = program
    .command('create')
    .summary('make a new image')
    .description(
      'Makes a new image, empty or on a base. It takes disk space only for what is written to it.',
    )
    .argument('<image>', 'the image file to make; “.pcow” is added if it is missing')
    .argument(
      '[size]',
      'bytes, or a number with K, M, G or T; with --base the default is the base’s size',
    )
    .option(
      '--block-size <size>',
      'unit of allocation, a power of two from 4K to 2M (default: 64K; on a base always that of the base)',
    )
    .option(
      '-b, --base <image[@snapshot]>',
      'stand on the present content of this image, or on one of its snapshots; or on an image in a registry: HOST/REPOSITORY:TAG',
    )
    .addOption(limitOption())
    .option('--force', 'replace an existing file');
  addRegistryOptions(command)
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(create);
  addNotes(command, {
    text: [
      'The base can still be used and changed: the new image stands on a frozen layer of it. If the base ' +
        'has data that is not frozen yet, an automatic snapshot freezes it first.',
      'For a base in a registry, a lazy image of it is made beside the new one, named after the repository, ' +
        'unless it is there already. Its bytes are fetched when they are used (“pcow help pull”).',
    ],
    examples: [
      { command: 'pcow create vm1 10G', does: 'an empty image of 10 GiB, vm1.pcow' },
      {
        command: 'pcow create vm2 --base base',
        does: 'on the present content of base.pcow, with its size',
      },
      {
        command: 'pcow create -b base@installed vm3 20G',
        does: 'on a snapshot, and larger than it',
      },
      {
        command: 'pcow create vm4 --base registry.example.org/images/golden:v1',
        does: 'on an image that is still in a registry',
      },
      {
        command: 'pcow create vm5 --base registry.example.org/images/golden:v1 --limit 10G',
        does: 'of which at most 10 GiB are kept here',
      },
    ],
  });
}

async function create(image: string, size: string | undefined, options: Options): Promise<void> {
  if (size === undefined && options.base === undefined) {
    throw new Failure(
      'PCOW_USAGE',
      'a size is missing: only an image on a base has a default size',
      'pcow create IMAGE SIZE',
    );
  }
  const isRemote = options.base !== undefined && (await isReference(options.base));
  if (options.limit !== undefined && !isRemote) {
    throw new Failure(
      'PCOW_USAGE',
      '--limit is for a base in a registry',
      'omit it, or name a registry: --base HOST/REPOSITORY:TAG',
    );
  }
  const bytes = size === undefined ? undefined : sizeOf(image, size);
  const blockSize = options.blockSize === undefined ? undefined : parseBlockSize(options.blockSize);
  const target = await newImage(image);
  const base =
    options.base === undefined ? undefined : await baseOf(options.base, isRemote, target, options);
  const wanted = { size: bytes, blockSize, base, force: options.force, ...whileWaiting };
  const info = await patiently(options.wait, () => makeImage(target, wanted));
  const on = options.base === undefined ? '' : `, on ${options.base}`;
  if (options.json === true) sayJson(madeImage(target, info));
  else
    say(
      `created ${target.file}: ${formatSize(info.size)}, blocks of ${formatSize(info.blockSize)}${on}`,
    );
  const distance = base === undefined ? null : distanceWarning(target, base.image);
  if (distance !== null) warn('pcow', distance);
  const place = await fileSystemOf(await realpath(path.dirname(target.file)));
  const overwriting = overwritingProblem(place?.type ?? '');
  if (overwriting !== null)
    process.stderr.write(`warning: ${overwriting}; use ext4 or XFS, or keep space free\n`);
}

/** An image on this machine, or a lazy image of one in a registry. */
async function baseOf(
  given: string,
  isRemote: boolean,
  { file }: ImageTarget,
  flags: Options,
): Promise<Target> {
  if (!isRemote) return findTarget(given);
  const { lazyBase } = await import('../../src/client/lazy-base.js');
  const base = await lazyBase(given, path.dirname(file), { ...httpOf(flags), limit: flags.limit });
  if (base.made && flags.json !== true) say(`made ${base.file}, whose bytes are fetched when used`);
  return { image: await findImage(base.file), snapshot: base.snapshot };
}

/** A directory may have a name like that of a registry: then the path is meant. */
async function isReference(given: string): Promise<boolean> {
  const { parseReference } = await import('../../src/registry/reference.js');
  try {
    parseReference(given);
  } catch {
    return false;
  }
  return given.startsWith('oci:') || !(await exists(given.split('/')[0]!));
}

/** If the two arguments are in the wrong order, their form shows it. */
function sizeOf(image: string, size: string): number {
  if (isSize(image) && !isSize(size)) {
    throw new Failure(
      'PCOW_INVALID',
      `${quote(size)} is not a size`,
      `did you mean “pcow create ${word(size)} ${word(image)}”?`,
    );
  }
  return parseSize(size);
}
