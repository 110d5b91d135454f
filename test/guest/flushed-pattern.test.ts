/**
 * What a guest has flushed survives a kill of its QEMU: promise 1 of the design, with a real guest
 * on flat files.
 */
import test from 'ava';

import type { Guest, PmemDisk } from '../../scripts/guest/guest.js';
import { bootOnDisks, deviceOf } from '../helpers/guest-disk.js';
import { mountedImages, MiB } from '../helpers/mount.js';

/** In bytes; different, so that the guest can tell them apart. */
const SIZES = { filled: 64 * MiB, nvdimm: 66 * MiB, files: 128 * MiB };

test.serial('a guest is killed: a new boot finds every page that it has flushed', async (t) => {
  const mount = await mountedImages(t, SIZES);
  const disks = Object.entries(SIZES).map(([name, size]): PmemDisk => {
    return { file: mount.file(name), size, device: name === 'nvdimm' ? 'nvdimm' : 'virtio-pmem' };
  });
  const first = await bootOnDisks(t, disks);
  const [filled, nvdimm, files] = await devicesOf(first);
  await first.must(`pattern fill ${filled} 42`);
  await first.must(`pattern fill ${nvdimm} 44`);
  // Killed while it writes to a DAX file.
  await first.must(`mkfs.ext4 -q -b 4096 ${files} && mount -t ext4 -o dax ${files} /mnt`);
  const flushed = await killedAfter(first, 'pattern fill /mnt/data 43 67108864', 4096);

  const second = await bootOnDisks(t, disks);
  const [filledThen, nvdimmThen, filesThen] = await devicesOf(second);
  for (const [device, seed, size] of [
    [filledThen, 42, SIZES.filled],
    [nvdimmThen, 44, SIZES.nvdimm],
  ] as const) {
    const verified = await second.must(`pattern verify ${device} ${seed}`);
    t.is(verified, `verified ${size / 4096} pages, 0 wrong\n`, device);
  }
  await second.must(`mount -t ext4 -o dax ${filesThen} /mnt`);
  t.is(
    await second.must(`pattern verify /mnt/data 43 ${flushed}`),
    `verified ${flushed} pages, 0 wrong\n`,
  );
});

async function devicesOf(guest: Guest): Promise<[filled: string, nvdimm: string, files: string]> {
  const { filled, nvdimm, files } = SIZES;
  return [
    await deviceOf(guest, filled),
    await deviceOf(guest, nvdimm),
    await deviceOf(guest, files),
  ];
}

/**
 * Kills the guest when the script has reported "flushed N" for at least this many pages. Resolves
 * with the last N.
 */
async function killedAfter(guest: Guest, script: string, pages: number): Promise<number> {
  let said = '';
  let flushed = 0;
  const running = guest.run(script, {
    onOutput: (text) => {
      said += text;
      flushed = Number([...said.matchAll(/flushed (\d+)\r?\n/g)].at(-1)?.[1] ?? 0);
      if (flushed >= pages) void guest.kill();
    },
  });
  await running.catch(() => undefined);
  await guest.kill();
  return flushed;
}
