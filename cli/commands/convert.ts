import path from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  type Conversion,
  type Converted,
  type ConvertOptions,
  convertIntoFile,
  convertIntoImage,
  convertToBytes,
  convertToFile,
  convertToImage,
} from '../../src/convert/convert.js';
import { formatOf } from '../../src/convert/open-contents.js';
import { quote } from '../../src/engine/quote.js';
import { formatSize, parseBlockSize } from '../../src/images/sizes.js';
import {
  findImage,
  findTarget,
  newFile,
  newImage,
  type Target,
  whileWaiting,
} from '../find-image.js';
import { writeToStdout } from '../output/byte-streams.js';
import { Failure, warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { say, sayJson } from '../output/stdout.js';

const OUT = ['pcow', 'raw', 'qcow2'] as const;
type Out = (typeof OUT)[number];
const STDOUT = '-';
/** The values with which qemu-img selects a cache mode. */
const CACHES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'];

interface Options {
  f?: string;
  O?: Out;
  B?: string;
  c?: boolean;
  l?: string;
  n?: boolean;
  o?: string;
  p?: boolean;
  q?: boolean;
  blockSize?: string;
  force?: boolean;
  json?: boolean;
  progress?: ProgressForm;
}

export function addConvert(program: Command): void {
  const command = program
    .command('convert')
    .summary('copy an image into another format')
    .description(
      'Copies an image into a new image or file, in this or another format. Zeros and holes are not written.',
    )
    .argument('<source>', 'an image, IMAGE@SNAPSHOT, or a file of another format')
    .argument(
      '<target>',
      'the file to make; for a Pcow image, “.pcow” is added if it is missing; “-”: standard output, raw',
    )
    .option(
      '-f <format>',
      'format of the source: pcow, original, raw, qcow2, vmdk, vdi, vhdx, …; default: it is detected',
    )
    .addOption(
      new Option(
        '-O <format>',
        'format of the target; default: by the end of its name, otherwise pcow',
      ).choices(OUT),
    )
    .option('-l <snapshot>', 'the snapshot of a Pcow image, as IMAGE@SNAPSHOT, or of a qcow2 file')
    .option(
      '-B <image[@snapshot]>',
      'for a Pcow image: stand on this base, and store only what differs from it',
    )
    .option('-c', 'for a qcow2 file: compress it')
    .option('-n', 'the target exists, and is at least as large: write into it')
    .option('-o <options>', 'for a qcow2 file: options for qemu-img, such as cluster_size=2M')
    .option('-p', 'as --progress bar')
    .option('-q', 'print nothing except failures')
    .addOption(
      new Option(
        '-t <cache>',
        'accepted as in qemu-img; the target is durable in any case',
      ).choices(CACHES),
    )
    .addOption(new Option('-T <cache>', 'the same for the source').choices(CACHES))
    .option('-W', 'accepted as in qemu-img; without effect')
    .option('-m <number>', 'the same', parseCoroutines)
    .option('--block-size <size>', 'for a Pcow image: unit of allocation (default: 64K)')
    .option('--force', 'replace an existing file')
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(convert);
  addNotes(command, {
    text: [
      'Formats other than raw and Pcow’s own are converted by qemu-img (Debian: qemu-utils), through a ' +
        'raw, sparse copy on disk. The snapshots inside a qcow2 file become snapshots, unless you name one; ' +
        'characters that a name cannot have become “-”. Pcow itself reads images of the original Pcow ' +
        '(“original”): their snapshots become snapshots named snapshot-1 and so on, and the content of their ' +
        'bases is included, or with -B what differs from the given base.',
      'An image that is being written is refused: take a snapshot, and convert that.',
      'With -n, nothing that the target already holds is written again, and its data beyond the end of the ' +
        'source stays. If you stop this in the middle, the target is half old and half new. Without -n, the ' +
        'target appears only when it is complete.',
    ],
    examples: [
      { command: 'pcow convert disk.qcow2 vm1', does: 'to vm1.pcow, with the snapshots inside' },
      { command: 'pcow convert vm1@nightly backup.qcow2 -c', does: 'a snapshot, compressed' },
      { command: 'pcow convert -O raw vm1 /dev/shm/vm1', does: 'to a raw, sparse file' },
      { command: 'pcow convert -n -O raw vm1@nightly /dev/vg/vm1', does: 'to a block device' },
      { command: 'pcow convert vm1@nightly - | zstd > vm1.zst', does: 'to another program' },
      {
        command: 'pcow convert -f original old.img vm2',
        does: 'from the original Pcow, with its snapshots',
      },
    ],
  });
}

async function convert(given: string, target: string, options: Options): Promise<void> {
  const source = await sourceOf(given, options.l);
  const { image, snapshot } = source;
  const from = options.f ?? (await formatOf(image.file));
  const to = options.O ?? formatByName(target, from);
  refuseUnfitting(target, to, options);
  const quiet = options.q === true;
  const conversion: Conversion = {
    source,
    from,
    blockSize: options.blockSize === undefined ? undefined : parseBlockSize(options.blockSize),
    base: options.B === undefined ? undefined : await findTarget(options.B),
    compress: options.c,
    qemuOptions: options.o,
    replace: options.force,
  };
  const name = snapshot === null ? image.given : `${image.given}@${snapshot}`;
  const form = options.progress ?? (quiet ? 'none' : options.p === true ? 'bar' : undefined);
  const result = await withProgress(`convert ${name}`, form, (long) =>
    made(conversion, target, to, options.n === true, {
      ...long,
      ...whileWaiting,
      onWarning: (message) => {
        warn('pcow', message);
      },
    }),
  );
  if (result === null) return;
  if (options.json === true) {
    sayJson({ source: image.file, sourceFormat: from, targetFormat: to, ...result });
  } else if (!quiet) {
    const { snapshots } = result;
    const along = snapshots.length === 0 ? '' : `, with the snapshots ${snapshots.join(', ')}`;
    say(
      `converted ${name} (${from}) to ${result.target}: ${formatSize(result.size)}, ${to}${along}`,
    );
  }
}

/** Returns null if the result went to standard output. */
async function made(
  conversion: Conversion,
  target: string,
  to: Out,
  isThere: boolean,
  options: ConvertOptions & { signal: AbortSignal },
): Promise<Converted | null> {
  if (target === STDOUT) {
    await writeToStdout(convertToBytes(conversion, options), options.signal);
    return null;
  }
  if (to === 'pcow') {
    return isThere
      ? convertIntoImage(conversion, await findImage(target), options)
      : convertToImage(conversion, await newImage(target), options);
  }
  return isThere
    ? convertIntoFile(conversion, target, to, options)
    : convertToFile(conversion, await newFile(target), to, options);
}

/** `snapshot`: NAME, or as in qemu-img, snapshot.name=NAME or snapshot.id=ID. */
async function sourceOf(given: string, snapshot: string | undefined): Promise<Target> {
  if (snapshot === undefined) return findTarget(given);
  return { image: await findImage(given), snapshot: snapshot.replace(/^snapshot\.(name|id)=/, '') };
}

function refuseUnfitting(target: string, to: Out, options: Options): void {
  for (const [name, wanted, only] of [
    ['-B', options.B, 'pcow'],
    ['--block-size', options.blockSize, 'pcow'],
    ['-c', options.c, 'qcow2'],
    ['-o', options.o, 'qcow2'],
  ] as const) {
    if (wanted !== undefined && to !== only) {
      throw new Failure(
        'PCOW_USAGE',
        `${name} is for targets of the format ${only}, and ${quote(target)} is to be ${to}`,
      );
    }
    if (wanted !== undefined && only === 'pcow' && options.n === true) {
      throw new Failure(
        'PCOW_USAGE',
        `${name} is for a new image, but with -n the target must exist`,
      );
    }
  }
  if (target !== STDOUT) return;
  if (to !== 'raw') {
    throw new Failure(
      'PCOW_USAGE',
      `an image of the format ${to} is not written from its beginning to its end, so it cannot go to standard output`,
      'a raw image can: -O raw; “pcow export IMAGE -” writes an image with its snapshots',
    );
  }
  if (options.n === true || options.json === true) {
    throw new Failure('PCOW_USAGE', 'standard output is for the data: omit -n and --json');
  }
}

function formatByName(target: string, from: string): Out {
  if (target === STDOUT) return 'raw';
  const ending = path.extname(target).slice(1);
  const named = OUT.find((format) => format === ending) ?? (ending === 'img' ? 'raw' : undefined);
  if (named !== undefined) return named;
  if (from !== 'pcow') return 'pcow';
  throw new Failure(
    'PCOW_USAGE',
    `the name ${quote(target)} does not show the format of the target`,
    `give the format: -O ${OUT.join(', -O ')}`,
  );
}

function parseCoroutines(text: string): number {
  if (!/^([1-9]|1[0-6])$/.test(text))
    throw new InvalidArgumentError('it must be a number from 1 to 16.');
  return Number(text);
}
