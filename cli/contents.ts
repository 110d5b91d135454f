/** Opening whatever a user names, to read it flat: an image, a snapshot, a raw file, or any format that QEMU knows. */
import { execFile } from 'node:child_process';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { promisify } from 'node:util';
import { beginsLikeOriginal, OriginalImage } from '../src/contents/original.js';
import { type Contents, fileContents, imageContents } from '../src/contents/contents.js';
import { Image, PcowError } from '../src/engine/index.js';
import { Failure } from './errors.js';
import { openNameless, pathOf } from './nameless.js';
import { quote } from './quote.js';
import { findTarget } from './target.js';

const run = promisify(execFile);

const MAGIC = Buffer.from('\x89PCOW\r\n\x1a', 'latin1');

/** `format`: `pcow`, `original` (the first Pcow's), `raw`, or one of qemu-img's; left out: what the file looks like. */
export async function openContents(given: string, format: string | undefined, signal: AbortSignal): Promise<Contents> {
  const { image, snapshot } = await findTarget(given);
  const found = format ?? (await formatOf(image.file, signal));
  if (found === 'pcow') {
    return imageContents(await Image.open(image.file), snapshot);
  }
  if (snapshot !== null) {
    throw new Failure(
      'PCOW_NOT_AN_IMAGE',
      `${quote(image.given)} is not a Pcow image, so it has no snapshot ${snapshot}`,
    );
  }
  if (found === 'original') {
    const original = await OriginalImage.open(image.file);
    return { ...original.state(original.snapshots), close: () => original.close() };
  }
  return found === 'raw' ? fileContents(image.file) : convertedContents(image.file, found, signal);
}

/** Of the original Pcow, with its snapshots. */
export async function openOriginal(given: string): Promise<OriginalImage> {
  const { image } = await findTarget(given);
  return OriginalImage.open(image.file);
}

/** What a file looks like. */
export async function formatOf(file: string, signal?: AbortSignal): Promise<string> {
  const handle = await open(file);
  try {
    const { buffer } = await handle.read(Buffer.alloc(64), 0, 64, 0);
    if (buffer.subarray(0, MAGIC.length).equals(MAGIC)) return 'pcow';
    if (beginsLikeOriginal(buffer)) return 'original';
  } finally {
    await handle.close();
  }
  const { stdout } = await qemuImg(file, signal, 'info', '--output=json', '--', file);
  return (JSON.parse(stdout) as { format: string }).format;
}

/** A raw copy, sparse, which goes when the contents are closed. */
async function convertedContents(file: string, format: string, signal: AbortSignal): Promise<Contents> {
  const { stdout } = await qemuImg(file, signal, 'info', '--output=json', '-f', format, '--', file);
  const raw = await openNameless(tmpdir());
  try {
    await raw.truncate((JSON.parse(stdout) as { 'virtual-size': number })['virtual-size']);
    const words = ['-n', '--target-is-zero', '-f', format, '-O', 'raw', '--', file, pathOf(raw)];
    await qemuImg(file, signal, 'convert', ...words);
    return await fileContents(pathOf(raw));
  } finally {
    await raw.close();
  }
}

export async function qemuImg(
  file: string,
  signal: AbortSignal | undefined,
  ...words: string[]
): Promise<{ stdout: string }> {
  try {
    return await run('qemu-img', words, { signal });
  } catch (error) {
    if (signal?.aborted) {
      throw new PcowError('PCOW_CANCELLED', `the work on ${quote(file)} was stopped`, { cause: error });
    }
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
      throw new Failure(
        'PCOW_UNSUPPORTED',
        `${quote(file)} is not a Pcow image, and qemu-img, which would read it, is not installed`,
        'install qemu-utils, or say that it is raw with its format option',
      );
    }
    const said = error instanceof Error && 'stderr' in error ? String(error.stderr).trim() : String(error);
    throw new Failure(
      'PCOW_NOT_AN_IMAGE',
      `qemu-img can't work on ${quote(file)}: ${said.replace(/^qemu-img: /, '')}`,
      `“qemu-img info ${file}” tells what it is; leave the format out to have it found`,
    );
  }
}
