/**
 * What a receiver has durably: a small file beside the image, written anew after each sync. It counts only while nobody else
 * has opened the image for writing, which the generation of its superblock tells: opening adds one, and closing one more.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { exists, giveName, type ImageInfo, receiptOf, removeName } from '../engine/index.js';
import type { Begin } from './header.js';

export interface Receipt {
  /** Of the image. */
  uuid: string;
  /** Of its superblock while the receiver had it open. */
  generation: number;
  /** The receiver was about to open it, which adds one. */
  opening?: boolean;
  begin: Begin;
  /** Bytes of the image: everything before is there. */
  offset: number;
  /** The receiver has made the image file. */
  made: boolean;
}

export async function writeReceipt(image: string, receipt: Receipt): Promise<void> {
  const place = receiptOf(image);
  const draft = `${place}.new`;
  await writeFile(draft, JSON.stringify(receipt));
  await giveName(draft, place, true);
}

/** null where there is none that counts. `info`: of the image before it is opened for writing. */
export async function readReceipt(image: string, info: ImageInfo): Promise<Receipt | null> {
  let text: string;
  try {
    text = await readFile(receiptOf(image), 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw error;
  }
  const receipt = JSON.parse(text) as Receipt;
  const leftOpen = info.generation === receipt.generation;
  const next = info.generation === receipt.generation + 1 && (info.clean || receipt.opening === true);
  return receipt.uuid === info.uuid && (leftOpen || next) ? receipt : null;
}

export async function removeReceipt(image: string): Promise<void> {
  if (await exists(receiptOf(image))) await removeName(receiptOf(image));
}
