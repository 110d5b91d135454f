/**
 * Live snapshots of a guest that runs under the monitor and writes to journalling filesystems, with
 * and without DAX: each is intact after the replay of its journal, and has every file that had been
 * made durable before it.
 */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import type { Guest } from '../../scripts/guest/guest.js';
import { bootOnDisks, GUEST_DISK } from '../helpers/guest-disk.js';
import { mountedImages, type TestMount } from '../helpers/mount.js';
import { attachedStatus, attachedTo, monitorReport } from '../helpers/monitored.js';
import { pcowProgram } from '../helpers/mounted.js';

const run = promisify(execFile);
const env = { ...process.env, PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` };
const SNAPSHOTS = 4;

/** A disk of the guest: /dev/pmemN, mounted on /mnt/N. */
interface Disk {
  name: string;
  number: number;
  options: string;
  /** The last number that was durable before each snapshot. */
  held: number[];
}

async function monitoredGuest(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  names: string[],
): Promise<Guest> {
  const disks = names.map((name) => ({ file: mount.file(name), size: GUEST_DISK }));
  const guest = await bootOnDisks(t, disks, [process.execPath, pcowProgram, 'run', '--']);
  await guest.must(names.map((_name, number) => `mkdir /mnt/${number}`).join('; '));
  return guest;
}

/**
 * Files with increasing numbers as names and contents, each durable before the next. /tmp/durable.N
 * has the last durable one.
 */
function writeForEver({ number }: Disk): string {
  const [directory, durable] = [`/mnt/${number}`, `/tmp/durable.${number}`];
  return `
  i=0; echo 0 > ${durable}
  while :; do
    i=$((i + 1)); mkdir -p ${directory}/$((i / 50))
    { echo $i; head -c 10000 /dev/urandom; } > ${directory}/$((i / 50))/$i; sync
    echo $i > ${durable}.next; mv ${durable}.next ${durable}
  done > /dev/null 2>&1 &`;
}

/** The last durable number, once it is at least `wanted`. */
async function durable(guest: Guest, { number }: Disk, wanted: number): Promise<number> {
  const file = `/tmp/durable.${number}`;
  return Number(
    await guest.must(`until [ "$(cat ${file})" -ge ${wanted} ]; do usleep 1000; done; cat ${file}`),
  );
}

/** `device` is a copy: its journal is replayed, as by its next mount. */
async function checkFileSystem(
  t: ExecutionContext<unknown>,
  device: string,
  before: number,
  what: string,
) {
  await run('e2fsck', ['-y', '-E', 'journal_only', device], { env }).catch((error: unknown) => {
    if ((error as { code: number }).code !== 1) throw error; // 1: the journal repaired something
  });
  await t.notThrowsAsync(run('e2fsck', ['-fn', device], { env }), what);
  for (let number = 1; number <= before; ++number) {
    const file = await run('debugfs', ['-R', `cat /${Math.floor(number / 50)}/${number}`, device], {
      env,
    });
    t.is(file.stdout.split('\n')[0], String(number), what);
  }
}

async function checkSnapshots(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  disk: Disk,
  last: number,
) {
  const { name, held } = disk;
  const copy = path.join(mount.scratch, 'copy');
  for (const [i, before] of held.entries()) {
    await run('cp', ['--sparse=always', mount.control(name, 'at', `s${i}`), copy]);
    await checkFileSystem(t, copy, before, `${name}, snapshot s${i}`);
  }
  await run('cp', ['--sparse=always', mount.file(name), copy]);
  await checkFileSystem(t, copy, last, `${name}, after the kill of QEMU`);
}

test.serial(
  'a guest that writes to ext4, and to ext4 -o dax, under the monitor: every live snapshot is sound',
  async (t) => {
    const mount = await mountedImages(t, { vm1: GUEST_DISK, vm2: GUEST_DISK });
    const disks: Disk[] = [
      { name: 'vm1', number: 0, options: '-o dax', held: [] },
      { name: 'vm2', number: 1, options: '', held: [] },
    ];
    const guest = await monitoredGuest(t, mount, ['vm1', 'vm2']);
    for (const disk of disks) {
      const { name, number, options } = disk;
      t.regex((await attachedStatus(mount, name)).attached?.command ?? '', /^qemu/);
      await guest.must(
        `mkfs.ext4 -q -b 4096 /dev/pmem${number} && mount -t ext4 ${options} /dev/pmem${number} /mnt/${number}`,
      );
      await guest.must(writeForEver(disk));
    }
    for (let i = 0; i < SNAPSHOTS; ++i) {
      for (const disk of disks) {
        disk.held.push(await durable(guest, disk, (disk.held.at(-1) ?? 0) + 8));
        await mount.write(`s${i}`, disk.name, 'snapshot');
      }
    }
    const last: number[] = [];
    for (const disk of disks) {
      t.is((await monitorReport(mount, disk.name)).liveSnapshots, SNAPSHOTS);
      last.push(await durable(guest, disk, (disk.held.at(-1) ?? 0) + 8));
    }
    await guest.kill();
    for (const disk of disks) {
      await attachedTo(mount, disk.name, null);
      await checkSnapshots(t, mount, disk, last[disk.number] ?? 0);
    }

    // And a new guest, on clones of snapshots.
    for (const { name } of disks) await mount.write(`${name}-again s1`, name, 'clone');
    const again = await monitoredGuest(t, mount, ['vm1-again', 'vm2-again']);
    for (const { number, options, held } of disks) {
      const [device, directory] = [`/dev/pmem${number}`, `/mnt/${number}`];
      await again.must(`mount -t ext4 ${options} ${device} ${directory}`);
      const found = await again.must(
        `head -n 1 ${directory}/0/1; head -n 1 ${directory}/*/${held[1]}`,
      );
      t.is(found, `1\n${held[1]}\n`);
      await again.must(`umount ${directory} && e2fsck -fn ${device}`);
    }
    await again.kill();
  },
);
