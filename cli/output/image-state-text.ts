/** Describes the state of an image file. */
import { describeHolder, type Reception } from '../../src/client/image-state.js';
import type { Attached } from '../../src/client/mount-status.js';
import type { ImageInfo } from '../../src/engine/index.js';
import type { PcowMount } from '../../src/images/mount-table.js';
import { formatSize } from '../../src/images/sizes.js';

/** `guest`: writes it instead of the mount; `mount`: its writer. */
export function describeState(
  image: ImageInfo,
  guest: Attached | null = null,
  mount: PcowMount | null = null,
): string {
  if (guest?.stalled)
    return `stalled: process ${image.holder?.pid ?? '?'} waits for the disk, which is full or failing`;
  if (image.holder !== null) {
    return mount === null
      ? `open for writing by ${describeHolder(image.holder)} (${image.holder.command})`
      : `mounted on ${mount.mountpoint} (process ${image.holder.pid})`;
  }
  return image.clean ? 'closed' : 'not closed by its last writer; the next one recovers it';
}

export function describeReception({ snapshot, offset, size }: Reception): string {
  return `half received: ${snapshot ?? 'a stream'} up to ${formatSize(offset)} of ${formatSize(size)}`;
}
