import { type FileHandle, open } from 'node:fs/promises';
import path from 'node:path';
import { type Command, Option } from 'commander';
import { copyContents, type Target } from '../../src/contents/copy.js';
import type { Contents } from '../../src/contents/contents.js';
import { type BaseOptions, Image, type LongOptions, type Making, MIN_SIZE, SIZE_UNIT } from '../../src/engine/index.js';
import { formatOf, openContents, openOriginal, qemuImg } from '../contents.js';
import { throughDraft } from '../drafts.js';
import { Failure } from '../errors.js';
import { addNotes } from '../help.js';
import { chainOf, withImage } from '../images.js';
import { checkTarget, onFrozenLayer } from '../making.js';
import { openNameless, pathOf } from '../nameless.js';
import { say, sayJson } from '../output.js';
import { type ProgressForm, progressOption, withProgress } from '../progress.js';
import { quote } from '../quote.js';
import { formatSize, parseBlockSize } from '../size.js';
import { findTarget, newFile, newImage } from '../target.js';

const OUT = ['pcow', 'raw', 'qcow2'] as const;
type Out = (typeof OUT)[number];

interface Options {
  f?: string;
  O?: Out;
  B?: string;
  c?: boolean;
  l?: string;
  o?: string;
  blockSize?: string;
  force?: boolean;
  json?: boolean;
  progress?: ProgressForm;
}

export function addConvert(program: Command): void {
  const command = program
    .command('convert')
    .summary('copy an image into another format')
    .description('Copies an image into a new one of this or another format. Zeros and holes are not written.')
    .argument('<source>', 'an image, IMAGE@SNAPSHOT, or a file of another format')
    .argument('<target>', 'the file to make; of a Pcow image “.pcow” is added where it is missing')
    .option(
      '-f <format>',
      'format of the source: pcow, original, raw, qcow2, vmdk, vdi, vhdx, …; left out: what it looks like',
    )
    .addOption(
      new Option('-O <format>', 'format of the target; left out: as its name ends, otherwise pcow').choices(OUT),
    )
    .option('-l <snapshot>', 'the snapshot of a Pcow image, as IMAGE@SNAPSHOT')
    .option('-B <image[@snapshot]>', 'of a Pcow image: stand on this base, and store only what differs from it')
    .option('-c', 'of a qcow2 file: compress')
    .option('-o <options>', 'of a qcow2 file: options for qemu-img, such as cluster_size=2M')
    .option('--block-size <size>', 'of a Pcow image: unit of allocation (default: 64K)')
    .option('--force', 'replace an existing file')
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(convert);
  addNotes(command, {
    text: [
      'Formats other than raw and Pcow’s own go through qemu-img (Debian: qemu-utils), by a raw, sparse copy on disk. Images of ' +
        'the original Pcow (“original”) are read by Pcow: their snapshots become snapshots, called snapshot-1 and so on, and ' +
        'their bases’ content comes along, or with -B what differs from the given base.',
      'An image that somebody writes is not copied as it is: take a snapshot, and convert that.',
    ],
    examples: [
      { command: 'pcow convert disk.qcow2 vm1', does: 'to vm1.pcow' },
      { command: 'pcow convert vm1@nightly backup.qcow2 -c', does: 'a snapshot, compressed' },
      { command: 'pcow convert -O raw vm1 /dev/shm/vm1', does: 'to a raw, sparse file' },
      { command: 'pcow convert -f original old.img vm2', does: 'from the original Pcow, with its snapshots' },
    ],
  });
}

async function convert(given: string, target: string, options: Options): Promise<void> {
  const source = options.l === undefined ? given : `${given}@${options.l}`;
  const { image, snapshot } = await findTarget(source);
  const from = options.f ?? (await formatOf(image.file));
  const to = options.O ?? formatByName(target, from);
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
  }
  if (from === 'pcow' && snapshot === null) await refuseInUse(image.file, given);
  const sources = from === 'pcow' ? await chainOf(image.file) : [image.file];
  const making: Making = { replace: options.force, sources };
  const result =
    to === 'pcow'
      ? await toImage(source, from, target, options, making)
      : await toFile(source, from, target, to, options, making);
  if (options.json === true)
    sayJson({ source: image.file, sourceFormat: from, targetFormat: to, snapshots: [], ...result });
  else say(`converted ${source} (${from}) to ${result.target}: ${formatSize(result.size)}, ${to}`);
}

function formatByName(target: string, from: string): Out {
  const ending = path.extname(target).slice(1);
  const named = OUT.find((format) => format === ending) ?? (ending === 'img' ? 'raw' : undefined);
  if (named !== undefined) return named;
  if (from !== 'pcow') return 'pcow';
  throw new Failure(
    'PCOW_USAGE',
    `the name ${quote(target)} does not tell which format it is to be`,
    `say it: -O ${OUT.join(', -O ')}`,
  );
}

async function refuseInUse(file: string, given: string): Promise<void> {
  const { holder } = await withImage(file, {}, (image) => image.info());
  if (holder !== null) {
    throw new Failure(
      'PCOW_BUSY',
      `${quote(given)} is open for writing by process ${holder.pid} (${holder.command}), so a copy could be half old and half new`,
      `take a snapshot and convert that: pcow snapshot ${given}@now, then ${given}@now`,
    );
  }
}

/** What was made. */
interface Made {
  target: string;
  size: number;
  snapshots?: string[];
}

async function toImage(source: string, from: string, given: string, options: Options, making: Making): Promise<Made> {
  const target = await newImage(given);
  const blockSize = options.blockSize === undefined ? undefined : parseBlockSize(options.blockSize);
  const below = options.B === undefined ? null : await findTarget(options.B);
  const sources = [...(making.sources ?? []), ...(below === null ? [] : await chainOf(below.image.file))];
  await checkTarget(target, options.force ?? false, sources);
  const make = (base?: BaseOptions) =>
    throughDraft(target.file, { ...making, sources }, (draft) =>
      withProgress(`convert ${source}`, options.progress, async (long) => {
        const snapshots =
          from === 'original'
            ? await fillFromOriginal(draft, source, { blockSize, base }, long)
            : await fill(draft, source, from, { blockSize, base }, long);
        return { target: target.file, snapshots, size: await withImage(draft, {}, (image) => image.info().size) };
      }),
    );
  if (below === null) return make();
  let made: Made | undefined;
  await onFrozenLayer(below, async (standing) => {
    made = await make(standing);
  });
  if (made === undefined) throw new Error('onFrozenLayer() has not called its work');
  return made;
}

type Interruptible = LongOptions & { signal: AbortSignal };

interface Content {
  blockSize: number | undefined;
  base: BaseOptions | undefined;
}

async function create(draft: string, size: number, { blockSize, base }: Content): Promise<void> {
  const rounded = Math.max(MIN_SIZE, Math.ceil(size / SIZE_UNIT) * SIZE_UNIT);
  await Image.createInDraft(draft, { size: rounded, ...(base ? { base } : { blockSize }) });
}

async function fill(
  draft: string,
  source: string,
  from: string,
  content: Content,
  long: Interruptible,
): Promise<string[]> {
  const contents = await openContents(source, from, long.signal);
  try {
    await create(draft, contents.size, content);
    await withImage(draft, { write: true }, (image) =>
      copyContents(contents, into(image, content.base !== undefined), long),
    );
  } finally {
    await contents.close();
  }
  return [];
}

async function fillFromOriginal(draft: string, source: string, content: Content, long: LongOptions): Promise<string[]> {
  const original = await openOriginal(source);
  const names: string[] = [];
  try {
    const blockSize = content.blockSize ?? Math.min(original.blockSize, 2 ** 21);
    await create(draft, original.size, { ...content, blockSize });
    await withImage(draft, { write: true }, async (image) => {
      for (let state = 0; state <= original.snapshots; state += 1) {
        await copyContents(original.state(state), into(image, state === 0 ? content.base !== undefined : true), long);
        if (state < original.snapshots) {
          names.push(`snapshot-${state + 1}`);
          await image.snapshot(`snapshot-${state + 1}`);
        }
      }
    });
  } finally {
    await original.close();
  }
  return names;
}

/** `holding`: the image reads as something already. */
function into(image: Image, holding: boolean): Target {
  const write = (buffer: Uint8Array, offset: number) => image.write(buffer, offset);
  if (!holding) return { write };
  const read = (buffer: Uint8Array, offset: number) => image.read(buffer, offset);
  return { write, present: { read, discard: (offset, length) => image.discard(offset, length) } };
}

async function toFile(
  source: string,
  from: string,
  given: string,
  to: Out,
  options: Options,
  making: Making,
): Promise<Made> {
  const target = await newFile(given);
  return throughDraft(target, making, (draft) =>
    withProgress(`convert ${source}`, options.progress, async (long) => {
      const contents = await openContents(source, from, long.signal);
      try {
        await (to === 'raw' ? writeRaw(contents, draft, long) : writeQcow2(contents, draft, options, long));
      } finally {
        await contents.close();
      }
      return { target, size: contents.size };
    }),
  );
}

/** By a raw stage in the same directory. */
async function writeQcow2(contents: Contents, file: string, { c, o }: Options, long: LongOptions): Promise<void> {
  const stage = await openNameless(path.dirname(file));
  try {
    await fillRaw(contents, stage, long);
    const words = [...(c === true ? ['-c'] : []), ...(o === undefined ? [] : ['-o', o])];
    await qemuImg(file, long.signal, 'convert', '-f', 'raw', '-O', 'qcow2', ...words, '--', pathOf(stage), file);
  } finally {
    await stage.close();
  }
}

async function writeRaw(contents: Contents, file: string, long: LongOptions): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    await fillRaw(contents, handle, long);
    await handle.datasync();
  } finally {
    await handle.close();
  }
}

async function fillRaw(contents: Contents, handle: FileHandle, long: LongOptions): Promise<void> {
  await handle.truncate(contents.size);
  await copyContents(contents, { write: (buffer, offset) => writeAll(handle, buffer, offset) }, long);
}

async function writeAll(handle: FileHandle, buffer: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < buffer.length;) {
    done += (await handle.write(buffer, done, buffer.length - done, offset + done)).bytesWritten;
  }
}
