/**
 * A file gets its name only when it is complete. Until then it is a draft: a hidden file in the
 * same directory, whose maker holds a lock on it (native/engine/image/names.h). A draft without a
 * lock was left by a killed process. It is removed when the next file is made or removed in the
 * directory, or when a mount of the directory begins.
 */
import { access, readdir } from 'node:fs/promises';
import path from 'node:path';

import { translated } from './errors.js';
import { addon } from './native.js';
import { removeName } from './names.js';

const DRAFT = /^\..*\.[0-9a-f-]+\.pcow-draft$/s;
/** The receipt: what an image has received of a stream (src/stream/receipt.ts). */
const RECEIPT = /^\.(.*)\.receiving(?:\.new)?$/s;

/** The path of the receipt of an image. */
export function receiptOf(image: string): string {
  return path.join(path.dirname(image), `.${path.basename(image)}.receiving`);
}

/**
 * Removes abandoned drafts, and the receipts of images that are gone, from a directory. Returns
 * their names.
 */
export async function removeRemains(directory: string): Promise<string[]> {
  const removed: string[] = [];
  for (const name of await readdir(directory).catch(() => [])) {
    // Files of another user are left.
    if (await removeIfRemains(directory, name).catch(() => false)) removed.push(name);
  }
  return removed;
}

async function removeIfRemains(directory: string, name: string): Promise<boolean> {
  const file = path.join(directory, name);
  if (DRAFT.test(name)) return translated(() => addon().removeLeftDraft(file));
  const image = RECEIPT.exec(name)?.[1];
  if (image?.endsWith('.pcow') !== true || (await exists(path.join(directory, image))))
    return false;
  await removeName(file);
  return true;
}

export async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
