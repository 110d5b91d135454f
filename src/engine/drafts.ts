/**
 * A file appears under its name only when it is complete. Until then it is a draft: a hidden file beside it, on which its maker holds a
 * lock (native/engine/image/names.h). A draft without one was left by a process that was killed, and is removed when something is next
 * made or removed in that directory, or a mount of it begins.
 */
import { access, readdir } from 'node:fs/promises';
import path from 'node:path';

import { translated } from './errors.js';
import { addon } from './native.js';
import { removeName } from './names.js';

const DRAFT = /^\..*\.[0-9a-f-]+\.pcow-draft$/s;
/** What an image has received of a stream (src/stream/receipt.ts). */
const RECEIPT = /^\.(.*)\.receiving(?:\.new)?$/s;

/** The path of the receipt of an image. */
export function receiptOf(image: string): string {
  return path.join(path.dirname(image), `.${path.basename(image)}.receiving`);
}

/** Removes from a directory the drafts that nobody makes any more, and the receipts of images that are gone. Returns their names. */
export async function removeRemains(directory: string): Promise<string[]> {
  const removed: string[] = [];
  for (const name of await readdir(directory).catch(() => [])) {
    // What belongs to another user stays.
    if (await removeIfRemains(directory, name).catch(() => false)) removed.push(name);
  }
  return removed;
}

async function removeIfRemains(directory: string, name: string): Promise<boolean> {
  const file = path.join(directory, name);
  if (DRAFT.test(name)) return translated(() => addon().removeLeftDraft(file));
  const image = RECEIPT.exec(name)?.[1];
  if (image?.endsWith('.pcow') !== true || (await exists(path.join(directory, image)))) return false;
  await removeName(file);
  return true;
}

export async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
