/**
 * Live snapshots of a guest that runs under the monitor and writes to a journalling filesystem:
 * each is intact after the replay of its journal, and has every file that had been made durable
 * before it.
 */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { boot } from '../../scripts/guest/boot.js';
import { pmemArgs, type Guest } from '../../scripts/guest/guest.js';
import { GUEST_DISK } from '../helpers/guest-disk.js';
import { mountedImages, type TestMount } from '../helpers/mount.js';
import { attachedStatus, attachedTo, monitorReport } from '../helpers/monitored.js';
import { pcowProgram } from '../helpers/mounted.js';

const run = promisify(execFile);
const env = { ...process.env, PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` };
const SNAPSHOTS = 4;

async function monitoredGuest(t: ExecutionContext<unknown>, mount: TestMount, name: string): Promise<Guest> {
  const guest = await boot({
    qemuArgs: pmemArgs(mount.file(name), GUEST_DISK),
    pmemDevices: 1,
    commandPrefix: [process.execPath, pcowProgram, 'run', '--'],
  });
  t.teardown(() => guest.kill());
  return guest;
}

/**
 * Files with increasing numbers as names and contents, each durable before the next. /tmp/durable
 * has the last durable one.
 */
const WRITE_FOR_EVER = `
  i=0; echo 0 > /tmp/durable
  while :; do
    i=$((i + 1)); mkdir -p /mnt/$((i / 50))
    { echo $i; head -c 10000 /dev/urandom; } > /mnt/$((i / 50))/$i; sync
    echo $i > /tmp/next; mv /tmp/next /tmp/durable
  done > /dev/null 2>&1 &`;

/** The last durable number, once it is at least `wanted`. */
async function durable(guest: Guest, wanted: number): Promise<number> {
  return Number(
    await guest.must(`until [ "$(cat /tmp/durable)" -ge ${wanted} ]; do usleep 1000; done; cat /tmp/durable`),
  );
}

/** `device` is a copy: its journal is replayed, as by its next mount. */
async function checkFileSystem(t: ExecutionContext<unknown>, device: string, before: number, what: string) {
  await run('e2fsck', ['-y', '-E', 'journal_only', device], { env }).catch((error: unknown) => {
    if ((error as { code: number }).code !== 1) throw error; // 1: the journal repaired something
  });
  await t.notThrowsAsync(run('e2fsck', ['-fn', device], { env }), what);
  for (let number = 1; number <= before; ++number) {
    const file = await run('debugfs', ['-R', `cat /${Math.floor(number / 50)}/${number}`, device], { env });
    t.is(file.stdout.split('\n')[0], String(number), what);
  }
}

for (const options of ['-o dax', '']) {
  test.serial(`a guest that writes to ext4 ${options} under the monitor: every live snapshot is sound`, async (t) => {
    const mount = await mountedImages(t, { vm1: GUEST_DISK });
    const guest = await monitoredGuest(t, mount, 'vm1');
    t.regex((await attachedStatus(mount, 'vm1')).attached?.command ?? '', /^qemu/);
    await guest.must(`mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -t ext4 ${options} /dev/pmem0 /mnt`);
    await guest.must(WRITE_FOR_EVER);
    const held: number[] = [];
    for (let i = 0; i < SNAPSHOTS; ++i) {
      held.push(await durable(guest, (held.at(-1) ?? 0) + 8));
      await mount.write(`s${i}`, 'vm1', 'snapshot');
    }
    t.is((await monitorReport(mount, 'vm1')).live_snapshots, SNAPSHOTS);
    await durable(guest, (held.at(-1) ?? 0) + 8);
    const last = await durable(guest, 0);
    await guest.kill();
    await attachedTo(mount, 'vm1', null);

    const copy = path.join(mount.scratch, 'copy');
    for (const [i, before] of held.entries()) {
      await run('cp', ['--sparse=always', mount.control('vm1', 'at', `s${i}`), copy]);
      await checkFileSystem(t, copy, before, `snapshot s${i}`);
    }
    await run('cp', ['--sparse=always', mount.file('vm1'), copy]);
    await checkFileSystem(t, copy, last, 'after the kill of QEMU');

    // And a new guest, on a clone of a snapshot.
    await mount.write('again s1', 'vm1', 'clone');
    const again = await monitoredGuest(t, mount, 'again');
    await again.must(`mount -t ext4 ${options} /dev/pmem0 /mnt`);
    const found = await again.must(`head -n 1 /mnt/0/1; head -n 1 /mnt/*/${held[1]}`);
    t.is(found, `1\n${held[1]}\n`);
    await again.must('umount /mnt && e2fsck -fn /dev/pmem0');
    await again.kill();
  });
}
