/** The work of `pcow convert`: contents of any origin into a new image or file, into one that is there, or to standard output. */
import { type FileHandle, open, readFile, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import type { Contents } from '../src/convert/contents.js';
import { copyContents, type Target as CopyTarget } from '../src/convert/copy.js';
import { type BaseOptions, Image, type LongOptions, type Making, MIN_SIZE, SIZE_UNIT } from '../src/engine/index.js';
import { mountHolding } from '../src/images/mount-table.js';
import { convertedContents, formatOf, openOriginal, openTarget } from './contents.js';
import { throughDraft } from './drafts.js';
import { Failure, warn } from './output/errors.js';
import { chainOf, withImage } from './images.js';
import { hasInternalSnapshots, internalSnapshots, namesFor } from './internal-snapshots.js';
import { checkTarget, distanceWarning, onFrozenLayer } from './making.js';
import { openNameless, pathOf } from './nameless.js';
import { writeToStdout } from './output/byte-streams.js';
import { type Long, type ProgressForm, withProgress } from './output/progress.js';
import { qemuImg } from './qemu-img.js';
import { quote, word } from './quote.js';
import { formatSize, sizeArgument } from './size.js';
import { findImage, findTarget, newFile, newImage, type Target } from './target.js';

export type Out = 'pcow' | 'raw' | 'qcow2';

/** What is to be converted, and how. */
export interface Conversion {
  source: Target;
  /** The source as messages call it. */
  name: string;
  from: string;
  /** The files that the source is read from. */
  files: string[];
  /** Of a Pcow image. */
  blockSize?: number | undefined;
  /** Of a Pcow image: IMAGE or IMAGE@SNAPSHOT. */
  base?: string | undefined;
  /** Of a qcow2 file. */
  compress?: boolean | undefined;
  /** Of a qcow2 file. */
  qemuOptions?: string | undefined;
  replace?: boolean | undefined;
  progress?: ProgressForm | undefined;
}

/** What was made. */
export interface Made {
  target: string;
  size: number;
  snapshots?: string[];
}

export async function toImage(conversion: Conversion, given: string): Promise<Made> {
  const { blockSize, base: wanted, replace } = conversion;
  const target = await newImage(given);
  const below = wanted === undefined ? null : await findTarget(wanted);
  const sources = [...conversion.files, ...(below === null ? [] : await chainOf(below.image.file))];
  await checkTarget(target, replace ?? false, sources);
  const make = (base?: BaseOptions) =>
    throughDraft(target.file, { replace, sources }, (draft) =>
      worked(conversion, async (long) => {
        const snapshots = await fill(draft, conversion, { blockSize, base }, long);
        return { target: target.file, snapshots, size: await withImage(draft, {}, (image) => image.info().size) };
      }),
    );
  if (below === null) return make();
  let made: Made | undefined;
  await onFrozenLayer(below, async (standing) => {
    made = await make(standing);
  });
  const warning = distanceWarning(target, below.image);
  if (warning !== null) warn('pcow', warning);
  if (made === undefined) throw new Error('onFrozenLayer() has not called its work');
  return made;
}

function worked<T>({ name, progress }: Conversion, work: (long: Long) => Promise<T>): Promise<T> {
  return withProgress(`convert ${name}`, progress, work);
}

interface Content {
  blockSize: number | undefined;
  base: BaseOptions | undefined;
}

async function create(draft: string, size: number, { blockSize, base }: Content): Promise<void> {
  const rounded = Math.max(MIN_SIZE, Math.ceil(size / SIZE_UNIT) * SIZE_UNIT);
  await Image.createInDraft(draft, { size: rounded, ...(base ? { base } : { blockSize }) });
}

/** Returns the names of the snapshots that the image has got. */
async function fill(draft: string, conversion: Conversion, content: Content, long: Long): Promise<string[]> {
  const { source, from } = conversion;
  if (from === 'original') return fillFromOriginal(draft, source.image.file, content, long);
  if (source.snapshot === null && hasInternalSnapshots(from)) {
    return fillWithInternalSnapshots(draft, conversion, content, long);
  }
  const contents = await openTarget(source, from, long.signal);
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

/** One after another, oldest first, then what the file holds now: each is stored as what differs from the one before. */
async function fillWithInternalSnapshots(
  draft: string,
  { source, from, name }: Conversion,
  content: Content,
  { signal, onProgress }: Long,
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
          onProgress(at * total + done, (snapshots.length + 1) * total);
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
      warn(
        'pcow',
        `${name}: the state of the running machine in snapshot ${quote(state.name)} is left out, for it is no content of a disk`,
      );
    }
  }
  return names;
}

/** `holding`: the image reads as something already. */
function into(image: Image, holding: boolean): CopyTarget {
  const write = (buffer: Uint8Array, offset: number) => image.write(buffer, offset);
  if (!holding) return { write };
  const read = (buffer: Uint8Array, offset: number) => image.read(buffer, offset);
  return { write, present: { read, discard: (offset, length) => image.discard(offset, length) } };
}

export async function toFile(conversion: Conversion, given: string, to: Out): Promise<Made> {
  const target = await newFile(given);
  const making: Making = { replace: conversion.replace, sources: conversion.files };
  return throughDraft(target, making, (draft) =>
    withContents(conversion, async (contents, long) => {
      await (to === 'raw' ? writeRaw(contents, draft, long) : writeQcow2(contents, draft, conversion, [], long));
      return { target, size: contents.size };
    }),
  );
}

/** All bytes, zeros as well, in a row. */
export async function toStdout(conversion: Conversion): Promise<void> {
  await withContents(conversion, (contents, long) => writeToStdout(bytesOf(contents, long), long.signal));
}

function withContents<T>(conversion: Conversion, work: (contents: Contents, long: Long) => Promise<T>): Promise<T> {
  return worked(conversion, async (long) => {
    const contents = await openTarget(conversion.source, conversion.from, long.signal);
    try {
      return await work(contents, long);
    } finally {
      await contents.close();
    }
  });
}

const PIECE = 1 << 20;

async function* bytesOf(contents: Contents, { signal, onProgress }: Long): AsyncGenerator<Buffer> {
  for await (const { offset, length, data } of contents.ranges(signal)) {
    for (let at = offset; at < offset + length; at += PIECE) {
      // A piece of its own each time: the one before may not have been written yet.
      const piece = Buffer.alloc(Math.min(PIECE, offset + length - at));
      if (data) await contents.read(piece, at);
      yield piece;
      onProgress(at + piece.length, contents.size);
    }
  }
}

/** `-n`: into what is there, which keeps its size and what lies behind the end of the source. */
export async function intoExisting(conversion: Conversion, given: string, to: Out): Promise<Made> {
  if (to === 'pcow') return intoImage(conversion, given);
  const file = await existingFile(given, conversion);
  return withContents(conversion, async (contents, long) => {
    if (to === 'qcow2') {
      await writeQcow2(contents, file, conversion, ['-n'], long);
    } else {
      await overwrite(contents, file, conversion, long);
    }
    return { target: file, size: contents.size };
  });
}

async function intoImage(conversion: Conversion, given: string): Promise<Made> {
  const { file, name, mount } = await findImage(given);
  refuseSource(conversion, file);
  if (mount !== null) {
    const flat = path.join(mount.mountpoint, name);
    throw new Failure(
      'PCOW_BUSY',
      `${name} is mounted on ${mount.mountpoint}, so its flat file is what can be written`,
      `pcow convert -n -O raw ${word(conversion.name)} ${word(flat)}`,
    );
  }
  return withContents(conversion, (contents, long) =>
    withImage(file, { write: true }, async (image) => {
      const { size } = image.info();
      if (size < contents.size) {
        throw tooSmall(name, size, conversion, contents, `pcow resize ${word(given)} ${sizeArgument(contents.size)}`);
      }
      await copyContents(contents, into(image, true), long);
      return { target: file, size };
    }),
  );
}

/** A file that may be overwritten as it is: raw, a block device, the flat file of a mounted image. */
async function existingFile(given: string, conversion: Conversion): Promise<string> {
  const file = await realpath(given).catch(() => {
    throw new Failure('PCOW_NOT_FOUND', `there is no ${quote(given)} to write into`, 'leave -n out to have it made');
  });
  const status = await stat(file);
  const held = await mountHolding(file);
  if ((!status.isFile() && !status.isBlockDevice()) || held?.inside.includes('/') === true) {
    throw new Failure('PCOW_INVALID', `${quote(given)} is neither a file nor a block device`);
  }
  refuseSource(conversion, file);
  if (held === null) {
    if (status.isFile() && (await formatOf(file).catch(() => 'raw')) === 'pcow') {
      throw new Failure(
        'PCOW_INVALID',
        `${quote(given)} is a Pcow image, which raw bytes would destroy`,
        '-O pcow writes into it',
      );
    }
  } else {
    refuseSource(conversion, path.join(held.mount.directory, `${held.inside}.pcow`));
  }
  return file;
}

function refuseSource({ files, name }: Conversion, file: string): void {
  if (files.includes(file)) {
    throw new Failure('PCOW_INVALID', `${quote(name)} is read from ${file}, so it is not written there`);
  }
}

function tooSmall(name: string, size: number, { name: source }: Conversion, contents: Contents, hint: string): Failure {
  return new Failure(
    'PCOW_INVALID',
    `${name} has ${formatSize(size)}, and ${quote(source)} ${formatSize(contents.size)}`,
    hint,
  );
}

async function overwrite(contents: Contents, file: string, conversion: Conversion, long: Long): Promise<void> {
  const handle = await open(file, 'r+').catch((error: unknown) => {
    throw notWritable(error, file);
  });
  try {
    const size = await sizeOf(handle);
    if (size < contents.size) throw tooSmall(file, size, conversion, contents, 'leave -n out to have a new one made');
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
  if (code === 'EBUSY') return new Failure('PCOW_BUSY', `${file} is in use`, 'end the guest that has it first');
  if (code === 'EACCES' || code === 'EPERM')
    return new Failure('PCOW_PERMISSION', `${file} may not be written by this user`);
  return code === 'EROFS'
    ? new Failure('PCOW_READ_ONLY', `${file} can't be written: its file system is read-only`)
    : error;
}

/** A block device says its size elsewhere. */
async function sizeOf(handle: FileHandle): Promise<number> {
  const status = await handle.stat();
  if (!status.isBlockDevice()) return status.size;
  const [major, minor] = [
    Math.floor(status.rdev / 256) & 0xfff,
    (status.rdev & 0xff) | ((status.rdev >> 12) & 0xfff00),
  ];
  return 512 * Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8'));
}

/** By a raw stage in the same directory. */
async function writeQcow2(
  contents: Contents,
  file: string,
  { compress, qemuOptions }: Conversion,
  more: string[],
  long: LongOptions,
): Promise<void> {
  const stage = await openNameless(path.dirname(file));
  try {
    await fillRaw(contents, stage, long);
    const words = [
      ...more,
      ...(compress === true ? ['-c'] : []),
      ...(qemuOptions === undefined ? [] : ['-o', qemuOptions]),
    ];
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
