/**
 * From the command that makes a guest's disk to the guest itself, when its base is in a registry
 * behind a link of 1 Gbit/s and 20 ms: fetched as it is touched, with a trace and without one, and
 * pulled before. The same with the base on this machine's disk. And the bytes that such a boot
 * fetches.
 */
import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import path from 'node:path';

import { accelerator } from '../guest/accelerator.js';
import { pmemArgs } from '../guest/guest.js';
import { rotated, type Bench, type Comparison } from './comparison.js';
import { bootDebian, DEBIAN_SIZE, debianRoot } from './debian.js';
import type { Link } from './link.js';
import { lastProcessor, type Mount, pcow, type Stand } from './stand.js';

const MiB = 2 ** 20;
const SIZE = 2 * DEBIAN_SIZE;

/** Ten milliseconds in each direction, and 1 Gbit/s. */
const LINK = { delay: 10, rate: 125e6 };

const SYSTEMS = ['lazy', 'lazy, with a trace', 'pull, then boot', 'local base'] as const;
type System = (typeof SYSTEMS)[number];

export const lazy: Comparison = { name: 'lazy', medium: 'disk', run, plots: () => ({}) };

async function run({ stand, record, short, say }: Bench): Promise<void> {
  const home = await stand.mount(`0-${lastProcessor}`);
  const { host, end } = await stand.registry();
  const link = await stand.link(host, LINK);
  const base = path.join(home.directory, 'base.pcow');
  say('lazy: pushing the image');
  await makeBase(stand, base, short ? 256 : 2048);
  for (const repository of ['plain', 'traced'])
    await command(stand, 'push', `${base}@v1`, `${host}/${repository}:v1`, '--plain-http');
  say('lazy: recording a trace');
  const traced = await starting(stand, link, home, 'lazy, with a trace', true);
  const bytes = { table: 'bytes', row: ['MiB for a boot'], unit: 'MiB', better: 'less' as const };
  record.add({ ...bytes, system: 'read from virtio-blk' }, await readByBoot(stand));
  const rounds = short ? 1 : 3;
  for (let round = 0; round < rounds; ++round) {
    say(`lazy: round ${round + 1} of ${rounds} (${await accelerator()})`);
    const clocks = new Set([traced.clock]);
    const found: [System, Start][] = [];
    for (const system of rotated(SYSTEMS, round)) {
      const start = await starting(stand, link, home, system, false);
      clocks.add(start.clock);
      found.push([system, start]);
    }
    if (clocks.size > 1) {
      say(`lazy: this round is void, the guests' clocks differ: ${[...clocks].join(', ')}`);
      continue;
    }
    for (const [system, start] of found) {
      const of = { table: 'start', system, unit: 's', better: 'less' as const };
      record.add({ ...of, row: ['until QEMU starts'] }, start.ready);
      record.add({ ...of, row: ['until the first process of the root'] }, start.first);
      record.add({ ...of, row: ['until multi-user'] }, start.multiUser);
      if (system !== 'local base') record.add({ ...bytes, system }, start.moved / MiB);
    }
  }
  await end();
  await home.end();
}

/** Seconds since the command that makes the disk, and bytes on the link. */
interface Start {
  ready: number;
  first: number;
  multiUser: number;
  moved: number;
  clock: string;
}

/**
 * Makes a disk and boots from it. Its directory is a new one, or for a local base `home`, where
 * that base is.
 */
async function starting(
  stand: Stand,
  link: Link,
  home: Mount,
  system: System,
  trace: boolean,
): Promise<Start> {
  const local = system === 'local base';
  const mount = local ? home : await stand.mount(`0-${lastProcessor}`);
  const name = path.basename(stand.fresh('vm'));
  const disk = path.join(mount.directory, `${name}.pcow`);
  const there = `${link.host}/${system === 'lazy, with a trace' ? 'traced' : 'plain'}:v1`;
  const before = link.moved;
  const began = performance.now();
  if (local) {
    await command(stand, 'create', disk, '--base', `${path.join(home.directory, 'base.pcow')}@v1`);
  } else if (system === 'pull, then boot') {
    const pulled = path.join(mount.directory, 'plain.pcow');
    await command(stand, 'pull', there, pulled, '--plain-http');
    await command(stand, 'create', disk, '--base', `${pulled}@v1`);
  } else {
    await command(stand, 'create', disk, '--base', there, '--plain-http');
  }
  const ready = (performance.now() - began) / 1000;
  const device = pmemArgs(path.join(mount.mountpoint, name), SIZE);
  const boot = await bootDebian(stand, { device, medium: 'pmem', under: stand.monitored() });
  const moved = link.moved - before;
  if (trace) await command(stand, 'trace', disk);
  if (!local) await mount.end();
  const first = ready + boot.kernel;
  return { ready, first, multiUser: first + boot.userspace, moved, clock: boot.clock };
}

/** The root file system, and behind it bytes that a boot does not need. */
async function makeBase(stand: Stand, image: string, mebibytes: number): Promise<void> {
  const raw = stand.fresh('raw');
  await stand.command('cp', '--sparse=always', debianRoot, raw);
  const file = await open(raw, 'r+');
  for (let at = 0; at < mebibytes; ++at)
    await file.write(randomBytes(MiB), 0, MiB, DEBIAN_SIZE + at * MiB);
  await file.truncate(SIZE);
  await file.close();
  await command(stand, 'convert', raw, image);
  await command(stand, 'snapshot', `${image}@v1`);
  await stand.command('rm', raw);
}

/** Runs a command, and prints how many sectors of 512 bytes it has read from disks (getrusage(2)). */
const COUNTING =
  'import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); ' +
  'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock)';

/** MiB that the kernel reads from the disk for a guest on virtio-blk without a cache of the host. */
async function readByBoot(stand: Stand): Promise<number> {
  const overlay = stand.fresh('overlay.qcow2');
  await stand.command(
    ...['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', debianRoot, '-F', 'raw', overlay],
  );
  const device = ['-drive', `if=virtio,file=${overlay},format=qcow2,cache=none`];
  const under = ['python3', '-c', COUNTING];
  const { output } = await bootDebian(stand, { device, medium: 'block', under });
  return (Number(output) * 512) / MiB;
}

const command = (stand: Stand, ...words: string[]): Promise<string> =>
  stand.command(process.execPath, pcow, ...words);
