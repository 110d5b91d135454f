/**
 * What a guest has flushed survives a kill of its QEMU: promise 1 of the design, with a real guest
 * on a flat file.
 */
import test from 'ava';

import type { Guest } from '../../scripts/guest/guest.js';
import { bootOn, GUEST_DISK } from '../helpers/guest-disk.js';
import { mountedImages } from '../helpers/mount.js';

const PAGES = GUEST_DISK / 4096;

test.serial('a guest fills its disk, flushes and is killed: a new boot finds every page', async (t) => {
  const mount = await mountedImages(t, { vm1: GUEST_DISK });
  const file = mount.file('vm1');
  const first = await bootOn(t, file);
  await first.must('pattern fill /dev/pmem0 42');
  await first.kill();

  const second = await bootOn(t, file);
  t.is(await second.must('pattern verify /dev/pmem0 42'), `verified ${PAGES} pages, 0 wrong\n`);
});

test.serial('a guest is killed while it writes to a DAX file: every page that was flushed is kept', async (t) => {
  const mount = await mountedImages(t, { vm1: GUEST_DISK });
  const file = mount.file('vm1');
  const first = await bootOn(t, file);
  await first.must('mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -t ext4 -o dax /dev/pmem0 /mnt');
  const flushed = await killedAfter(first, 'pattern fill /mnt/data 43 67108864', 4096);

  const second = await bootOn(t, file);
  await second.must('mount -t ext4 -o dax /dev/pmem0 /mnt');
  t.is(await second.must(`pattern verify /mnt/data 43 ${flushed}`), `verified ${flushed} pages, 0 wrong\n`);
});

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

test.serial('an nvdimm on the flat file keeps what the guest wrote, too', async (t) => {
  const mount = await mountedImages(t, { vm1: GUEST_DISK });
  const file = mount.file('vm1');
  const first = await bootOn(t, file, 'nvdimm');
  await first.must('pattern fill /dev/pmem0 44');
  await first.kill();

  const second = await bootOn(t, file, 'nvdimm');
  t.is(await second.must('pattern verify /dev/pmem0 44'), `verified ${PAGES} pages, 0 wrong\n`);
});
