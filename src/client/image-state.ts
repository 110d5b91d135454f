/** The state of an image file, and which process writes it. */
import type { Holder, ImageInfo } from '../engine/index.js';
import { stateOfServer } from '../images/mount-life.js';
import type { PcowMount } from '../images/mount-table.js';
import { readReceipt } from '../stream/receipt.js';
import { type Attached, attachedTo } from './mount-status.js';

/**
 * `open`: a process writes it; `closed`: properly; `unclean`: its writer died, and the next one
 * recovers it.
 */
export type ImageFileState = 'open' | 'closed' | 'unclean';

/** The state that Image.info() describes. */
export function stateOf(image: ImageInfo): ImageFileState {
  if (image.holder !== null) return 'open';
  return image.clean ? 'closed' : 'unclean';
}

/** Whether the mount itself is the writer of an image. */
export async function isHeldBy(mount: PcowMount | null, { holder }: ImageInfo): Promise<boolean> {
  return (
    mount !== null &&
    holder?.host === null &&
    (await stateOfServer(mount.directory)).pid === holder.pid
  );
}

/** For messages. */
export function describeHolder({ pid, host }: Holder): string {
  return host === null ? `process ${pid}` : `process ${pid} on the host ${host}`;
}

/** The process that writes the image instead of the mount, as the mount reports it. */
export async function guestOf(
  holder: ImageInfo['holder'],
  mount: PcowMount | null,
  name: string,
): Promise<Attached | null> {
  return holder === null || mount === null ? null : attachedTo(mount.mountpoint, name);
}

/** The state of an unfinished receive. */
export interface Reception {
  /** The name of the coming snapshot; null: what an export holds beyond its snapshots. */
  snapshot: string | null;
  /** Bytes of the image: everything before this offset has been received. */
  offset: number;
  /** Bytes of the image when all is there. */
  size: number;
}

/** null: it is complete. An image that this user may not read is treated as complete. */
export async function receptionOf(image: ImageInfo): Promise<Reception | null> {
  const receipt = await readReceipt(image.path, image).catch(() => null);
  if (receipt === null) return null;
  const { begin, offset } = receipt;
  return { snapshot: begin.snapshot?.name ?? null, offset, size: begin.size };
}
