/**
 * Records durably what a receiver has received: a small file beside the image, written again after
 * each sync. It is valid only while no other process has opened the image for writing. The
 * generation of the superblock shows that: opening increments it by one, and closing by one more.
 * While the receiver is about to open the image, the receipt also names the receiver's process,
 * because another process that opened it first, and was killed, leaves the same generation.
 */
import { readFile, writeFile } from 'node:fs/promises';
import {
  exists,
  giveName,
  type Holder,
  type ImageInfo,
  isPcowError,
  receiptOf,
  removeName,
} from '../engine/index.js';
import { type Begin, parseBegin } from './header.js';

/** A process, as a superblock records it. */
export type Opener = Pick<Holder, 'pid' | 'startTime'>;

export interface Receipt {
  /** Of the image. */
  uuid: string;
  /** Of its superblock while the receiver has it open. */
  generation: number;
  /**
   * The receiver that was about to open it, which increments the generation; null: it has opened
   * it.
   */
  opening?: Opener | null;
  begin: Begin;
  /** Bytes of the image: everything before this offset has been received. */
  offset: number;
  /** The receiver has made the image file. */
  made: boolean;
}

export async function writeReceipt(image: string, receipt: Receipt): Promise<void> {
  const file = receiptOf(image);
  const draft = `${file}.new`;
  await writeFile(draft, JSON.stringify(receipt));
  await giveName(draft, file, true);
}

/** Returns null if there is no valid one. `info`: of the image before it is opened for writing. */
export async function readReceipt(image: string, info: ImageInfo): Promise<Receipt | null> {
  let text: string;
  try {
    text = await readFile(receiptOf(image), 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw error;
  }
  const receipt = parseReceipt(text);
  return receipt !== null && counts(receipt, info) ? receipt : null;
}

function counts({ uuid, generation, opening }: Receipt, info: ImageInfo): boolean {
  if (uuid !== info.uuid) return false;
  // The receiver has it open, or was killed; or it has not opened it yet.
  if (info.generation === generation) return true;
  if (info.generation !== generation + 1) return false;
  // The receiver has closed it; or it has opened it, and was killed before it could record that.
  if (!opening) return info.clean;
  return info.opener?.pid === opening.pid && info.opener.startTime === opening.startTime;
}

/**
 * Returns null if the text is not valid: two receivers wrote it at once, or another program did.
 */
function parseReceipt(text: string): Receipt | null {
  try {
    const { uuid, generation, opening, begin, offset, made } = JSON.parse(text) as Partial<Receipt>;
    if (typeof uuid !== 'string' || !isCount(generation) || !isCount(offset)) return null;
    const known = parseBegin(Buffer.from(JSON.stringify(begin ?? null)));
    return offset > known.size
      ? null
      : { uuid, generation, opening: openerOf(opening), begin: known, offset, made: made === true };
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError || isPcowError(error))
      return null;
    throw error;
  }
}

/** An incomplete entry, as of an older version, matches no process. */
function openerOf(value: unknown): Opener | null {
  if (value === undefined || value === null || value === false) return null;
  const { pid, startTime } = value as Partial<Opener>;
  return isCount(pid) && isCount(startTime) ? { pid, startTime } : { pid: 0, startTime: 0 };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

export async function removeReceipt(image: string): Promise<void> {
  if (await exists(receiptOf(image))) await removeName(receiptOf(image));
}
