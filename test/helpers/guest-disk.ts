/** Guests whose persistent memory is the flat files of images. */
import type { ExecutionContext } from 'ava';

import { boot } from '../../scripts/guest/boot.js';
import { disksArgs, type Guest, type PmemDisk } from '../../scripts/guest/guest.js';

/** Bytes. */
export const GUEST_DISK = 128 * 1024 * 1024;

/** Boots on a flat file of GUEST_DISK bytes. The guest ends with the test, at the latest. */
export function bootOn(t: ExecutionContext, file: string): Promise<Guest> {
  return bootOnDisks(t, [{ file, size: GUEST_DISK }]);
}

/**
 * The same on several: a boot takes most of the time of a test. `prefix`: the words before QEMU.
 */
export async function bootOnDisks(
  t: ExecutionContext,
  disks: PmemDisk[],
  prefix: string[] = [],
): Promise<Guest> {
  const guest = await boot({
    qemuArgs: disksArgs(disks),
    pmemDevices: disks.length,
    commandPrefix: prefix,
  });
  t.teardown(() => guest.kill());
  return guest;
}

/** The device of the disk with this number of bytes, which no other one of the guest has. */
export async function deviceOf(guest: Guest, bytes: number): Promise<string> {
  const found = await guest.must(
    `for d in /sys/block/pmem*; do [ $(cat $d/size) -ne ${bytes / 512} ] || printf /dev/\${d##*/}; done`,
  );
  if (!/^\/dev\/pmem\d+$/.test(found)) throw new Error(`the disks of ${bytes} bytes: ${found}`);
  return found;
}
