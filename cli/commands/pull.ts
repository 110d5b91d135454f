import type { Command } from 'commander';
import { isPcowError } from '../../src/engine/errors.js';
import { exists } from '../../src/engine/drafts.js';
import { abandonPull } from '../../src/registry/hidden-image.js';
import { withStore } from '../../src/registry/open-store.js';
import { pull } from '../../src/registry/pull.js';
import { nameFrom, parseReference } from '../../src/registry/reference.js';
import { withImage } from '../../src/images/with-image.js';
import { formatSize } from '../../src/images/sizes.js';
import { findImage, type ImageTarget, newImage } from '../find-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { say, sayJson } from '../output/stdout.js';
import {
  addRegistryOptions,
  httpOf,
  limitOption,
  type RegistryFlags,
} from '../registry-options.js';
import { word } from '../../src/engine/quote.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options extends RegistryFlags {
  lazy?: boolean;
  limit?: number;
  base?: string;
  abort?: boolean;
  force?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

export function addPull(program: Command): void {
  const command = program
    .command('pull')
    .summary('get an image from a registry')
    .description(
      'Makes an image from a registry or an OCI layout, or adds the snapshots that an image lacks.',
    )
    .argument('<reference>', 'HOST/REPOSITORY:TAG, or oci:DIRECTORY:TAG; @DIGEST instead of :TAG')
    .argument(
      '[image]',
      'the image to make or to bring up to date; default: named as the repository',
    )
    .option(
      '--base <image>',
      'make the new image stand on this one, which has older snapshots of it',
    )
    .option('--lazy', 'fetch the bytes of the new image only when they are used')
    .addOption(limitOption())
    .option('--force', 'drop data of an existing image that is in no snapshot')
    .option('--abort', 'pull nothing; drop what an interrupted pull of this image has kept');
  addRegistryOptions(command)
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(pullCommand);
  addNotes(command, {
    text: [
      'A new image appears when it is complete. An interrupted pull keeps what has arrived: run it again. ' +
        'Everything is checked against the digest of the manifest before it gets into an image.',
      'A lazy image (--lazy) is there at once, and images can stand on it. Its mount fetches what readers ' +
        'need, and they wait for it as for a slow disk; “pcow prefetch” fetches the rest. ' +
        'Commands that need more than is here say so.',
      'No process may have an existing image open for writing, not even a mount that was asked to change it.',
    ],
    examples: [
      { command: 'pcow pull registry.example.org/images/golden:v1', does: 'makes golden.pcow' },
      {
        command: 'pcow pull registry.example.org/images/golden:v2 golden',
        does: 'adds to it what v2 has beyond v1',
      },
      {
        command: 'pcow pull registry.example.org/images/golden:v2 new --base golden',
        does: 'another image, which holds only what v2 has beyond the snapshots of golden',
      },
      {
        command: 'pcow pull --lazy registry.example.org/images/golden:v1',
        does: 'golden.pcow, without its bytes',
      },
      {
        command: 'pcow pull --lazy --limit 10G registry.example.org/images/golden:v1',
        does: 'the same, which never keeps more than 10 GiB of them',
      },
      { command: 'pcow pull oci:/mnt/usb/images:v1 golden', does: 'from a directory' },
    ],
  });
}

async function pullCommand(
  reference: string,
  given: string | undefined,
  options: Options,
): Promise<void> {
  const target = await targetOf(given ?? nameFrom(parseReference(reference)));
  if (options.abort === true) {
    await abort(target, options);
    return;
  }
  if (options.limit !== undefined && options.lazy !== true) {
    throw new Failure('PCOW_USAGE', 'only a lazy image has a limit', 'add --lazy, or omit --limit');
  }
  if (options.lazy === true) {
    await pullAsLazy(reference, target, options);
    return;
  }
  const { force, wait, progress, json } = options;
  const base = options.base === undefined ? undefined : (await findImage(options.base)).file;
  const pulled = await withProgress(`pull ${target.name}`, progress, async (long) => {
    const pulling = {
      force,
      base,
      ...long,
      opening: <T>(open: () => Promise<T>) => patiently(wait, open, long.signal),
    };
    return withStore(reference, 'pull', { ...httpOf(options), signal: long.signal }, (store) =>
      pull(store, target.file, pulling).catch((error: unknown) => {
        throw explainedFor(error, target);
      }),
    );
  });
  if (json === true) {
    sayJson({ image: target.name, file: target.file, reference, ...pulled });
    return;
  }
  const { snapshot, layers, present, fetched, digest } = pulled;
  const what = `${target.name}@${snapshot}`;
  if (present === layers) say(`${what} is up to date`);
  else say(`pulled ${what}: ${formatSize(fetched)}, ${layers - present} of ${layers} layers`);
  say(digest);
}

async function pullAsLazy(
  reference: string,
  { name, file }: ImageTarget,
  options: Options,
): Promise<void> {
  if (options.base !== undefined || options.force === true) {
    throw new Failure(
      'PCOW_USAGE',
      '--lazy makes an image of its own: --base and --force do not apply to it',
      'omit them',
    );
  }
  if (await exists(file)) {
    throw new Failure(
      'PCOW_EXISTS',
      `${file} exists already, and only a new image can be lazy`,
      'give the new image another name, or pull without --lazy',
    );
  }
  const lazyImage = await import('../../src/registry/lazy-image.js');
  const pulled = await withProgress(`pull ${name}`, options.progress, ({ signal }) =>
    lazyImage.pullLazily(reference, file, { ...httpOf(options), limit: options.limit, signal }),
  );
  const remoteBytes = await withImage(file, {}, (image) => image.remoteBytes());
  if (options.json === true) {
    sayJson({ image: name, file, reference, ...pulled, remote: remoteBytes });
    return;
  }
  say(
    `${name}@${pulled.snapshot} is lazy: ${formatSize(remoteBytes)} are fetched when they are used`,
  );
  say(pulled.digest);
}

async function targetOf(given: string): Promise<ImageTarget> {
  try {
    return await findImage(given);
  } catch (error) {
    if (!isPcowError(error, 'PCOW_NOT_FOUND')) throw error;
    return newImage(given);
  }
}

async function abort(target: ImageTarget, { json }: Options): Promise<void> {
  if (!(await abandonPull(target.file))) {
    throw new Failure(
      'PCOW_NOT_FOUND',
      `${target.name} has no pull that was interrupted`,
      'nothing was left to drop',
    );
  }
  if (json === true) sayJson({ image: target.name, abandoned: true });
  else say(`gave up pulling ${target.name}`);
}

/** What has arrived is kept, so the next step is to continue. */
function explainedFor(error: unknown, { name, mount }: ImageTarget): unknown {
  if (isPcowError(error, 'PCOW_LOCKED') && mount !== null) {
    return new Failure(
      'PCOW_BUSY',
      `${name} is in use in the mount on ${mount.mountpoint}, and a pull needs the image for itself`,
      `end the mount first: pcow umount ${word(mount.mountpoint)}`,
    );
  }
  if (isPcowError(error, 'PCOW_CANCELLED', 'PCOW_NO_SPACE') && error.next === undefined) {
    return new Failure(
      error.code,
      error.message,
      'what has arrived is kept: run the same command again, or drop it with --abort',
    );
  }
  return error;
}
