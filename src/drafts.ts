/**
 * A file appears under its name only when it is complete. Until then it is a draft: a hidden file beside it, which names the
 * process that makes it (native/engine/create.cc makes them of new images). Of a process that was killed it stays behind, until
 * something is next made or removed in that directory, or a mount of it begins.
 */
import { access, readdir, unlink } from 'node:fs/promises';
import path from 'node:path';

const DRAFT = /^\..*\.(\d+)\.pcow-draft$/s;
/** What an image has received of a stream (src/stream/receipt.ts). */
const RECEIPT = /^\.(.*)\.receiving(?:\.new)?$/s;
/** Bytes of the name, so that a draft's is never too long. */
const NAME_LENGTH = 200;

/** The path of the draft of a file. */
export function draftOf(file: string): string {
  const name = Buffer.from(path.basename(file)).subarray(0, NAME_LENGTH).toString();
  return path.join(path.dirname(file), `.${name}.${process.pid}.pcow-draft`);
}

/** The path of the receipt of an image. */
export function receiptOf(image: string): string {
  return path.join(path.dirname(image), `.${path.basename(image)}.receiving`);
}

/** Removes from a directory the drafts of processes that are no more, and the receipts of images that are. Returns their names. */
export async function removeRemains(directory: string): Promise<string[]> {
  const removed: string[] = [];
  for (const name of await readdir(directory).catch(() => [])) {
    if (!(await isRemains(directory, name))) continue;
    // What belongs to another user stays.
    await unlink(path.join(directory, name)).then(
      () => removed.push(name),
      () => undefined,
    );
  }
  return removed;
}

async function isRemains(directory: string, name: string): Promise<boolean> {
  const pid = DRAFT.exec(name)?.[1];
  if (pid !== undefined) return !isAlive(Number(pid));
  const image = RECEIPT.exec(name)?.[1];
  return image !== undefined && image.endsWith('.pcow') && !(await exists(path.join(directory, image)));
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

export async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
