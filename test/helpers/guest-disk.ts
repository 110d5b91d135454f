/** An image whose flat file is a guest's persistent memory. */
import { mkdir } from 'node:fs/promises';
import path from 'node:path';

import type { ExecutionContext } from 'ava';

import { boot } from '../../scripts/guest/boot.js';
import { pmemArgs, type Guest } from '../../scripts/guest/guest.js';
import { mounted, pcow } from './mounted.js';
import { scratchDirectory } from './scratch.js';

/** Bytes. */
export const GUEST_DISK = 128 * 1024 * 1024;

export interface GuestDisk {
  /** The flat file. */
  file: string;
  /** The directory of its control files. */
  control: string;
}

export async function mountedDisk(t: ExecutionContext): Promise<GuestDisk> {
  const scratch = await scratchDirectory(t);
  const images = path.join(scratch, 'images');
  const mountPoint = path.join(scratch, 'mnt');
  await mkdir(images);
  await mkdir(mountPoint);
  await pcow('create', path.join(images, 'vm1'), String(GUEST_DISK));
  await mounted(t, images, mountPoint);
  return { file: path.join(mountPoint, 'vm1'), control: path.join(mountPoint, '.pcow/vm1') };
}

/** The guest ends with the test, at the latest. */
export async function bootOn(
  t: ExecutionContext,
  file: string,
  device: 'virtio-pmem' | 'nvdimm' = 'virtio-pmem',
): Promise<Guest> {
  const guest = await boot({ qemuArgs: pmemArgs(file, GUEST_DISK, device), pmemDevices: 1 });
  t.teardown(() => guest.kill());
  return guest;
}
