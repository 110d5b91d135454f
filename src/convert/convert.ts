/**
 * Converts content in any format to a new image or file, to an existing one, or to a stream of
 * bytes. One file, because all ways share the preparation of the source and the same checks of the
 * target.
 */
import { type FileHandle, open, readFile, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { describeHolder, isHeldBy } from '../client/image-state.js';
import { checkTarget, distanceWarning, onFrozenLayer } from '../client/make-image.js';
import {
  type BaseOptions,
  Image,
  type LongOptions,
  type Making,
  MIN_SIZE,
  PcowError,
  SIZE_UNIT,
} from '../engine/index.js';
import { quote, word } from '../engine/quote.js';
import type { ImageTarget, Target } from '../images/find-image.js';
import { throughDraft } from '../images/make-file.js';
import type { AskOptions } from '../images/mount-answers.js';
import { mountHolding } from '../images/mount-table.js';
import { formatSize, sizeArgument } from '../images/sizes.js';
import { chainOf, withImage } from '../images/with-image.js';
import type { Contents } from './contents.js';
import { copyContents, type Target as CopyTarget } from './copy.js';
import { hasInternalSnapshots, internalSnapshots, namesFor } from './internal-snapshots.js';
import { convertedContents, formatOf, openContents, openOriginal } from './open-contents.js';
import { qemuImg } from './qemu-img.js';
import { openUnnamed, pathOf } from '../engine/unnamed-file.js';

/** What to convert, and how. */
export interface Conversion {
  /** The result of findTarget(); for a qcow2 file, with the name of a snapshot inside it. */
  source: Target;
  /**
   * `pcow`, `original` (the first Pcow's), `raw`, or a format of qemu-img; default: the format that
   * the source appears to have.
   */
  from?: string | undefined;
  /** Bytes; for a new image that stands on no base. */
  blockSize?: number | undefined;
  /** The base of a new image. */
  base?: Target | undefined;
  /** For a qcow2 file. */
  compress?: boolean | undefined;
  /** For a qcow2 file: as for qemu-img's option -o. */
  qemuOptions?: string | undefined;
  /** A new image or file may replace an existing one. */
  replace?: boolean | undefined;
}

/** Options of every conversion. Progress is in bytes of the source. */
export interface ConvertOptions extends LongOptions, AskOptions {
  /** Called with a sentence for people: about content that is left out, or about the result. */
  onWarning?: ((message: string) => void) | undefined;
}

/** The result of a conversion. */
export interface Converted {
  /** The path of the image or file. */
  target: string;
  /** Bytes. */
  size: number;
  /** The snapshots of a new image, oldest first. */
  snapshots: string[];
}

/** A conversion with everything that is known about its source. */
interface Prepared extends Conversion {
  /** The name of the source in messages. */
  name: string;
  from: string;
  /** The files from which the source is read. */
  files: string[];
}

async function prepared(conversion: Conversion): Promise<Prepared> {
  const { image, snapshot } = conversion.source;
  const from = conversion.from ?? (await formatOf(image.file));
  if (from === 'pcow' && snapshot === null) await refuseInUse(image);
  const name = snapshot === null ? image.given : `${image.given}@${snapshot}`;
  return {
    ...conversion,
    from,
    name,
    files: from === 'pcow' ? await chainOf(image.file) : [image.file],
  };
}

async function refuseInUse({ file, given, mount }: ImageTarget): Promise<void> {
  const image = await withImage(file, {}, (open) => open.info());
  const { holder } = image;
  if (holder !== null) {
    const state = (await isHeldBy(mount, image))
      ? `is written in the mount ${mount?.mountpoint ?? ''} (process ${holder.pid})`
      : `is open for writing by ${describeHolder(holder)} (${holder.command})`;
    throw new PcowError(
      'PCOW_BUSY',
      `${quote(given)} ${state}, so a copy could be half old and half new`,
      {
        next: `take a snapshot and convert that: pcow snapshot ${word(`${given}@now`)}, then ${word(`${given}@now`)}`,
      },
    );
  }
}

/**
 * Makes a new image. The snapshots inside a qcow2 file, or in an image of the first Pcow, are
 * converted as well, unless one is named. The image appears under its name only when it is complete
 * and durable.
 */
export async function convertToImage(
  conversion: Conversion,
  target: ImageTarget,
  options: ConvertOptions = {},
): Promise<Converted> {
  const known = await prepared(conversion);
  const { blockSize, base: below, replace, files } = known;
  const sources = [...files, ...(below === undefined ? [] : await chainOf(below.image.file))];
  await checkTarget(target, replace ?? false, sources);
  const make = (base?: BaseOptions) =>
    throughDraft(target.file, { replace, sources }, async (draft) => {
      const snapshots = await fill(draft, known, { blockSize, base }, options);
      return {
        target: target.file,
        snapshots,
        size: await withImage(draft, {}, (image) => image.info().size),
      };
    });
  if (below === undefined) return make();
  const made = await onFrozenLayer(below, make, options);
  const warning = distanceWarning(target, below.image);
  if (warning !== null) options.onWarning?.(warning);
  return made;
}

interface Content {
  blockSize: number | undefined;
  base: BaseOptions | undefined;
}

async function create(draft: string, size: number, { blockSize, base }: Content): Promise<void> {
  const rounded = Math.max(MIN_SIZE, Math.ceil(size / SIZE_UNIT) * SIZE_UNIT);
  await Image.createInDraft(draft, { size: rounded, ...(base ? { base } : { blockSize }) });
}

/** Returns the names of the image's snapshots. */
async function fill(
  draft: string,
  conversion: Prepared,
  content: Content,
  long: ConvertOptions,
): Promise<string[]> {
  const { source, from } = conversion;
  if (from === 'original') return fillFromOriginal(draft, source.image, content, long);
  if (source.snapshot === null && hasInternalSnapshots(from)) {
    return fillWithInternalSnapshots(draft, conversion, content, long);
  }
  return withContents(conversion, long, async (contents) => {
    await create(draft, contents.size, content);
    await withImage(draft, { write: true }, (image) =>
      copyContents(contents, into(image, content.base !== undefined), long),
    );
    return [];
  });
}

async function fillFromOriginal(
  draft: string,
  source: ImageTarget,
  content: Content,
  long: LongOptions,
): Promise<string[]> {
  const original = await openOriginal(source);
  const names: string[] = [];
  try {
    const blockSize = content.blockSize ?? Math.min(original.blockSize, 2 ** 21);
    await create(draft, original.size, { ...content, blockSize });
    await withImage(draft, { write: true }, async (image) => {
      for (let state = 0; state <= original.snapshots; state += 1) {
        await copyContents(
          original.state(state),
          into(image, state === 0 ? content.base !== undefined : true),
          long,
        );
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

/**
 * One after another, oldest first, then the file's present content: each stores only its
 * differences from the one before.
 */
async function fillWithInternalSnapshots(
  draft: string,
  { source, from, name }: Prepared,
  content: Content,
  { signal, onProgress, onWarning }: ConvertOptions,
): Promise<string[]> {
  const { file } = source.image;
  const snapshots = await internalSnapshots(file, signal);
  const names = namesFor(snapshots);
  for (const [at, state] of [...snapshots, null].entries()) {
    const contents = await convertedContents(file, from, state, signal);
    try {
      if (at === 0) await create(draft, contents.size, content);
      const long = {
        signal,
        onProgress: (done: number, total: number) => {
          onProgress?.(at * total + done, (snapshots.length + 1) * total);
        },
      };
      await withImage(draft, { write: true }, async (image) => {
        await copyContents(contents, into(image, at > 0 || content.base !== undefined), long);
        if (state !== null) await image.snapshot(names[at] ?? '');
      });
    } finally {
      await contents.close();
    }
    if (state !== null && state.machineState > 0) {
      onWarning?.(
        `${name}: the state of the running machine in snapshot ${quote(state.name)} is left out, because it is not part of the disk's content`,
      );
    }
  }
  return names;
}

/** `holding`: the image already has a content. */
function into(image: Image, holding: boolean): CopyTarget {
  const write = (buffer: Uint8Array, offset: number) => image.write(buffer, offset);
  if (!holding) return { write };
  const read = (buffer: Uint8Array, offset: number) => image.read(buffer, offset);
  return { write, present: { read, discard: (offset, length) => image.discard(offset, length) } };
}

/**
 * Makes a new file. It appears under its name only when it is complete and durable. `target`: the
 * result of newFile().
 */
export async function convertToFile(
  conversion: Conversion,
  target: string,
  format: 'raw' | 'qcow2',
  options: ConvertOptions = {},
): Promise<Converted> {
  const known = await prepared(conversion);
  const making: Making = { replace: conversion.replace, sources: known.files };
  return throughDraft(target, making, (draft) =>
    withContents(known, options, async (contents) => {
      await (format === 'raw'
        ? writeRaw(contents, draft, options)
        : writeQcow2(contents, draft, conversion, [], options));
      return { target, size: contents.size, snapshots: [] };
    }),
  );
}

/** All bytes in order, including zeros. */
export async function* convertToBytes(
  conversion: Conversion,
  options: ConvertOptions = {},
): AsyncGenerator<Buffer> {
  const { source, from } = await prepared(conversion);
  const contents = await openContents(source, { format: from, signal: options.signal });
  try {
    yield* bytesOf(contents, options);
  } finally {
    await contents.close();
  }
}

async function withContents<T>(
  { source, from }: Prepared,
  { signal }: ConvertOptions,
  work: (contents: Contents) => Promise<T>,
): Promise<T> {
  const contents = await openContents(source, { format: from, signal });
  try {
    return await work(contents);
  } finally {
    await contents.close();
  }
}

const PIECE = 1 << 20;

async function* bytesOf(
  contents: Contents,
  { signal, onProgress }: LongOptions,
): AsyncGenerator<Buffer> {
  for await (const { offset, length, data } of contents.ranges(signal)) {
    for (let at = offset; at < offset + length; at += PIECE) {
      // A new buffer each time, because the previous one may not have been written yet.
      const piece = Buffer.alloc(Math.min(PIECE, offset + length - at));
      if (data) await contents.read(piece, at);
      yield piece;
      onProgress?.(at + piece.length, contents.size);
    }
  }
}

/**
 * Writes into an existing image at rest. The image keeps its size, its snapshots, and its content
 * behind the end of the source. If it is stopped in the middle, the image is half old and half new.
 */
export async function convertIntoImage(
  conversion: Conversion,
  { file, name, given, mount }: ImageTarget,
  options: ConvertOptions = {},
): Promise<Converted> {
  const known = await prepared(conversion);
  refuseSource(known, file);
  if (mount !== null) {
    const flat = path.join(mount.mountpoint, name);
    throw new PcowError(
      'PCOW_BUSY',
      `${name} is mounted on ${mount.mountpoint}, so write to its flat file`,
      {
        next: `pcow convert -n -O raw ${word(known.name)} ${word(flat)}`,
      },
    );
  }
  return withContents(known, options, (contents) =>
    withImage(file, { write: true }, async (image) => {
      const { size } = image.info();
      if (size < contents.size) {
        throw tooSmall(
          name,
          size,
          known,
          contents,
          `pcow resize ${word(given)} ${sizeArgument(contents.size)}`,
        );
      }
      await copyContents(contents, into(image, true), options);
      return { target: file, size, snapshots: [] };
    }),
  );
}

/**
 * Writes into an existing file: a raw file, a block device, the flat file of a mounted image, or a
 * qcow2 file. The file keeps its size. If it is stopped in the middle, the file is half old and
 * half new.
 */
export async function convertIntoFile(
  conversion: Conversion,
  given: string,
  format: 'raw' | 'qcow2',
  options: ConvertOptions = {},
): Promise<Converted> {
  const known = await prepared(conversion);
  const file = await existingFile(given, known);
  return withContents(known, options, async (contents) => {
    await (format === 'raw'
      ? overwrite(contents, file, known, options)
      : writeQcow2(contents, file, conversion, ['-n'], options));
    return { target: file, size: contents.size, snapshots: [] };
  });
}

/**
 * A file that may be overwritten directly: raw, a block device, or the flat file of a mounted
 * image.
 */
async function existingFile(given: string, conversion: Prepared): Promise<string> {
  const file = await realpath(given).catch(() => {
    throw new PcowError('PCOW_NOT_FOUND', `there is no ${quote(given)} to write into`, {
      next: 'omit -n to make it',
    });
  });
  const status = await stat(file);
  const held = await mountHolding(file);
  if ((!status.isFile() && !status.isBlockDevice()) || held?.inside.includes('/') === true) {
    throw new PcowError('PCOW_INVALID', `${quote(given)} is neither a file nor a block device`);
  }
  refuseSource(conversion, file);
  if (held === null) {
    if (status.isFile() && (await formatOf(file).catch(() => 'raw')) === 'pcow') {
      throw new PcowError(
        'PCOW_INVALID',
        `${quote(given)} is a Pcow image, and raw bytes would destroy it`,
        {
          next: 'use -O pcow to write its content',
        },
      );
    }
  } else {
    refuseSource(conversion, path.join(held.mount.directory, `${held.inside}.pcow`));
  }
  return file;
}

function refuseSource({ files, name }: Prepared, file: string): void {
  if (files.includes(file)) {
    throw new PcowError(
      'PCOW_INVALID',
      `${quote(name)} is read from ${file}, so it can't be written there`,
    );
  }
}

function tooSmall(
  name: string,
  size: number,
  { name: source }: Prepared,
  contents: Contents,
  hint: string,
): PcowError {
  return new PcowError(
    'PCOW_INVALID',
    `${name} has ${formatSize(size)}, and ${quote(source)} ${formatSize(contents.size)}`,
    { next: hint },
  );
}

async function overwrite(
  contents: Contents,
  file: string,
  conversion: Prepared,
  long: LongOptions,
): Promise<void> {
  const handle = await open(file, 'r+').catch((error: unknown) => {
    throw notWritable(error, file);
  });
  try {
    const size = await sizeOf(handle);
    if (size < contents.size)
      throw tooSmall(file, size, conversion, contents, 'omit -n to make a new one');
    const write = (buffer: Uint8Array, offset: number) => writeAll(handle, buffer, offset);
    const present = {
      read: (buffer: Uint8Array, offset: number) => handle.read(buffer, 0, buffer.length, offset),
      discard: (offset: number, length: number) => write(Buffer.alloc(length), offset),
    };
    await copyContents(contents, { write, present }, long);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function notWritable(error: unknown, file: string): unknown {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code === 'EBUSY')
    return new PcowError('PCOW_BUSY', `${file} is in use`, {
      next: 'end the guest that has it first',
    });
  if (code === 'EACCES' || code === 'EPERM')
    return new PcowError('PCOW_PERMISSION', `this user may not write ${file}`);
  return code === 'EROFS'
    ? new PcowError('PCOW_READ_ONLY', `${file} can't be written: its filesystem is read-only`)
    : error;
}

/** The size of a block device is read from sysfs. */
async function sizeOf(handle: FileHandle): Promise<number> {
  const status = await handle.stat();
  if (!status.isBlockDevice()) return status.size;
  const [major, minor] = [
    Math.floor(status.rdev / 256) & 0xfff,
    (status.rdev & 0xff) | ((status.rdev >> 12) & 0xfff00),
  ];
  return 512 * Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8'));
}

/** Goes through a raw temporary file in the same directory. */
async function writeQcow2(
  contents: Contents,
  file: string,
  { compress, qemuOptions }: Conversion,
  more: string[],
  long: LongOptions,
): Promise<void> {
  const stage = await openUnnamed(path.dirname(file));
  try {
    await fillRaw(contents, stage, long);
    const words = [
      ...more,
      ...(compress === true ? ['-c'] : []),
      ...(qemuOptions === undefined ? [] : ['-o', qemuOptions]),
    ];
    await qemuImg(
      file,
      long.signal,
      'convert',
      '-f',
      'raw',
      '-O',
      'qcow2',
      ...words,
      '--',
      pathOf(stage),
      file,
    );
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
  await copyContents(
    contents,
    { write: (buffer, offset) => writeAll(handle, buffer, offset) },
    long,
  );
}

async function writeAll(handle: FileHandle, buffer: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < buffer.length;) {
    done += (await handle.write(buffer, done, buffer.length - done, offset + done)).bytesWritten;
  }
}
