/**
 * Opens anything that a user names, to read its flat content: an image, a snapshot, a raw file, or
 * any format that QEMU supports.
 */
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { beginsLikeOriginal, OriginalImage } from './original-image.js';
import { type Contents, fileContents, imageContents } from './contents.js';
import { Image } from '../engine/index.js';
import { attachedTo } from '../client/mount-status.js';
import { PcowError } from '../engine/errors.js';
import { openUnnamed, pathOf } from '../engine/unnamed-file.js';
import { qemuImg } from './qemu-img.js';
import { quote, word } from '../engine/quote.js';
import {
  chosen,
  hasInternalSnapshots,
  type InternalSnapshot,
  internalSnapshot,
} from './internal-snapshots.js';
import type { ImageTarget, Target } from '../images/find-image.js';

const MAGIC = Buffer.from('\x89PCOW\r\n\x1a', 'latin1');

/**
 * Opens the result of findTarget(), to read it flat. `format`: `pcow`, `original` (the first
 * Pcow's), `raw`, or a format of qemu-img; default: the format that the file appears to have. For a
 * format of qemu-img, a raw, sparse copy is made in the directory for temporary files.
 */
export async function openContents(
  { image, snapshot }: Target,
  { format, signal }: { format?: string | undefined; signal?: AbortSignal | undefined } = {},
): Promise<Contents> {
  const found = format ?? (await formatOf(image.file, signal));
  if (found === 'pcow') {
    return imageContents(await Image.open(image.file), snapshot);
  }
  if (snapshot !== null && !hasInternalSnapshots(found)) {
    throw new PcowError(
      'PCOW_NOT_AN_IMAGE',
      `${quote(image.given)} is not a Pcow image, so it has no snapshot ${snapshot}`,
    );
  }
  const file = await fileWith(found, image);
  if (found === 'original') {
    const original = await OriginalImage.open(file);
    return { ...original.state(original.snapshots), close: () => original.close() };
  }
  if (found === 'raw') return fileContents(file);
  const internal = snapshot === null ? null : await internalSnapshot(file, snapshot, signal);
  return convertedContents(file, found, internal, signal);
}

/**
 * The file to read as a format other than Pcow's. If an image was named by its flat file, that is
 * the flat file.
 */
async function fileWith(
  format: string,
  { given, file, flat, mount, name }: ImageTarget,
): Promise<string> {
  if (flat === undefined || mount === null) {
    if (format === 'raw' && (await beginsLikeImage(file))) {
      throw new PcowError(
        'PCOW_INVALID',
        `${quote(given)} is a Pcow image: as a raw file it would be copied with its header and tables`,
        { next: 'omit the format to read the content of the image (cp copies the file itself)' },
      );
    }
    return file;
  }
  const process = await attachedTo(mount.mountpoint, name);
  if (process !== null) {
    throw new PcowError(
      'PCOW_BUSY',
      `${quote(given)} is written by process ${process.pid} (${process.command}) without the mount, so its flat file may show older bytes`,
      {
        next: `take a snapshot and read it: pcow snapshot ${word(`${given}@now`)}, then ${word(`${given}@now`)} without a format`,
      },
    );
  }
  return flat;
}

async function beginsLikeImage(file: string): Promise<boolean> {
  const handle = await open(file);
  try {
    const { buffer } = await handle.read(Buffer.alloc(MAGIC.length), 0, MAGIC.length, 0);
    return buffer.equals(MAGIC);
  } finally {
    await handle.close();
  }
}

/** Opens an image of the original Pcow, with its snapshots. */
export async function openOriginal(image: ImageTarget): Promise<OriginalImage> {
  return OriginalImage.open(await fileWith('original', image));
}

/** What a file looks like: `pcow`, `original`, `raw`, or one of qemu-img's. */
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

/**
 * A raw, sparse copy of a snapshot inside the file, or of its present content. The copy is removed
 * when it is closed.
 */
export async function convertedContents(
  file: string,
  format: string,
  internal: InternalSnapshot | null,
  signal: AbortSignal | undefined,
): Promise<Contents> {
  const { stdout } = await qemuImg(file, signal, 'info', '--output=json', '-f', format, '--', file);
  const raw = await openUnnamed(tmpdir());
  try {
    await raw.truncate((JSON.parse(stdout) as { 'virtual-size': number })['virtual-size']);
    const words = [
      '-n',
      '--target-is-zero',
      '-f',
      format,
      '-O',
      'raw',
      ...chosen(internal),
      '--',
      file,
      pathOf(raw),
    ];
    await qemuImg(file, signal, 'convert', ...words);
    return await fileContents(pathOf(raw));
  } finally {
    await raw.close();
  }
}
