/**
 * A snapshot of a running guest by its control file: a rollback restores what the guest had at that
 * moment.
 */
import { readFile } from 'node:fs/promises';

import test from 'ava';

import { bootOn, bootOnDisks, GUEST_DISK } from '../helpers/guest-disk.js';
import { mountedImages } from '../helpers/mount.js';

const FILE_BYTES = 16 * 1024 * 1024;
const FILE_PAGES = FILE_BYTES / 4096;

test.serial(
  'snapshot of a running guest, changes, rollback: a new boot finds the old files',
  async (t) => {
    const mount = await mountedImages(t, { vm1: GUEST_DISK });
    const file = mount.file('vm1');
    const guest = await bootOn(t, file);
    await guest.must('mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -t ext4 -o dax /dev/pmem0 /mnt');
    await guest.must(`echo old > /mnt/release; pattern fill /mnt/data 1 ${FILE_BYTES}; sync`);

    await mount.write('before', 'vm1', 'snapshot');
    await guest.must(`echo new > /mnt/release; pattern fill /mnt/data 2 ${FILE_BYTES}; sync`);
    t.is(await guest.must('cat /mnt/release'), 'new\n');
    await guest.powerOff();
    t.regex(await readFile(mount.control('vm1', 'snapshots'), 'utf8'), /"name":\s*"before"/);
    await mount.write('before', 'vm1', 'rollback');

    const again = await bootOn(t, file);
    await again.must(
      'e2fsck -fy /dev/pmem0 > /dev/null || [ $? -eq 1 ]; mount -t ext4 -o dax /dev/pmem0 /mnt',
    );
    t.is(await again.must('cat /mnt/release'), 'old\n');
    t.is(await again.must('pattern verify /mnt/data 1'), `verified ${FILE_PAGES} pages, 0 wrong\n`);
  },
);

test.serial(
  'a guest that never pauses: a snapshot holds all rounds that were durable, and no later one without them',
  async (t) => {
    const mount = await mountedImages(t, { vm1: GUEST_DISK });
    const file = mount.file('vm1');
    const guest = await bootOn(t, file);
    await guest.must('mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -t ext4 -o dax /dev/pmem0 /mnt');
    await guest.must(`
    i=0; echo 0 > /tmp/durable
    while :; do
      i=$((i + 1)); echo $i > /mnt/round.$i; sync; echo $i > /tmp/next; mv /tmp/next /tmp/durable
      rm -f /mnt/round.$((i - 8))
    done &`);
    const durable = new Map<string, number>();
    for (const name of ['one', 'two', 'three']) {
      const wanted = 10 * (durable.size + 1);
      const line = await guest.must(
        `until [ "$(cat /tmp/durable)" -ge ${wanted} ]; do usleep 1000; done; cat /tmp/durable`,
      );
      durable.set(name, Number(line));
      await mount.write(name, 'vm1', 'snapshot');
    }
    await guest.kill();

    // One boot finds them all: the image goes back to the newest one, and the others are cloned.
    await mount.write('three', 'vm1', 'rollback');
    for (const name of ['two', 'one']) await mount.write(`${name} ${name}`, 'vm1', 'clone');
    const files = ['one', 'two', 'vm1'].map((image) => ({
      file: mount.file(image),
      size: GUEST_DISK,
    }));
    const again = await bootOnDisks(t, files);
    let newestBefore = 0;
    for (const [disk, [name, before]] of [...durable].entries()) {
      await again.must(`mount -t ext4 -o dax /dev/pmem${disk} /mnt`);
      const listing = await again.must(
        'cd /mnt; for f in round.*; do echo "${f#round.} $(cat $f)"; done | sort -n',
      );
      const rounds = listing
        .trim()
        .split('\n')
        .map((line) => line.split(' ').map(Number));
      const first = rounds[0]?.[0] ?? 0;
      const newest = rounds.at(-1)?.[0] ?? 0;
      t.true(
        newest >= before,
        `snapshot ${name}: round ${before} was durable before it, its newest is ${newest}`,
      );
      for (const [i, [number, content]] of rounds.entries()) {
        t.is(number, first + i, `snapshot ${name}: a round is missing`);
        if (number !== newest)
          t.is(content, number, `snapshot ${name}: what round ${number} holds`);
      }
      // Each disk is the expected one: a later snapshot has later rounds.
      if (disk > 0) t.true(newest > newestBefore, `snapshot ${name}`);
      newestBefore = newest;
      await again.must(`umount /mnt && e2fsck -fn /dev/pmem${disk}`);
    }
  },
);
