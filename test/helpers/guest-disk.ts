/** A guest whose persistent memory is the flat file of an image. */
import type { ExecutionContext } from 'ava';

import { boot } from '../../scripts/guest/boot.js';
import { pmemArgs, type Guest } from '../../scripts/guest/guest.js';

/** Bytes. */
export const GUEST_DISK = 128 * 1024 * 1024;

/** Boots on a flat file of GUEST_DISK bytes. The guest ends with the test, at the latest. */
export async function bootOn(
  t: ExecutionContext,
  file: string,
  device: 'virtio-pmem' | 'nvdimm' = 'virtio-pmem',
): Promise<Guest> {
  const guest = await boot({ qemuArgs: pmemArgs(file, GUEST_DISK, device), pmemDevices: 1 });
  t.teardown(() => guest.kill());
  return guest;
}
