/** What state an image file is in, in words. */
import type { ImageInfo } from '../../src/engine/index.js';
import type { PcowMount } from '../../src/images/mount-table.js';
import { readReceipt } from '../../src/stream/receipt.js';
import { type Attached, attachedTo } from '../control.js';
import { formatSize } from '../size.js';

/** `open`: somebody writes it; `closed`: properly; `unclean`: its writer died, and the next one recovers it. */
export type State = 'open' | 'closed' | 'unclean';

export function stateOf(image: ImageInfo): State {
  if (image.holder !== null) {
    return 'open';
  }
  return image.clean ? 'closed' : 'unclean';
}

/** The process that has the image in place of the mount, as the mount knows it. */
export async function guestOf(
  holder: ImageInfo['holder'],
  mount: PcowMount | null,
  name: string,
): Promise<Attached | null> {
  return holder === null || mount === null ? null : attachedTo(mount.mountpoint, name);
}

/** `guest`: has it in place of a mount; `mount`: its writer. */
export function describeState(image: ImageInfo, guest: Attached | null = null, mount: PcowMount | null = null): string {
  if (guest?.stalled) return `stalled: process ${image.holder?.pid ?? '?'} waits for the disk, which is full or fails`;
  switch (stateOf(image)) {
    case 'open':
      if (mount !== null) return `mounted on ${mount.mountpoint} (process ${image.holder?.pid ?? '?'})`;
      return `open for writing by process ${image.holder?.pid ?? '?'} (${image.holder?.command ?? '?'})`;
    case 'closed':
      return 'closed';
    case 'unclean':
      return 'not closed by its last writer; the next one recovers it';
  }
}

/** What an image has got of a stream that has not ended. */
export interface Reception {
  /** The snapshot that it will be; null: what an export holds beyond its snapshots. */
  snapshot: string | null;
  /** Bytes of the image: everything before is there. */
  offset: number;
  /** Of the image when all is there. */
  size: number;
}

/** null: it is whole. What this user may not look at is taken for whole. */
export async function receptionOf(image: ImageInfo): Promise<Reception | null> {
  const receipt = await readReceipt(image.path, image).catch(() => null);
  if (receipt === null) return null;
  const { begin, offset } = receipt;
  return { snapshot: begin.snapshot?.name ?? null, offset, size: begin.size };
}

export function describeReception({ snapshot, offset, size }: Reception): string {
  return `half received: ${snapshot ?? 'a stream'} up to ${formatSize(offset)} of ${formatSize(size)}`;
}
