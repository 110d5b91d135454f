/**
 * The boot of a distribution (scripts/bench/guest/debian) until multi-user.target, each time on a
 * new clone of the same root file system, as it would be installed.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { accelerator } from '../guest/accelerator.js';
import { repository } from '../guest/files.js';
import { pmemArgs } from '../guest/guest.js';
import { rotated, type Bench, type Comparison } from './comparison.js';
import { lastProcessor, type Mount, type Stand } from './stand.js';

const SIZE = 2 ** 31;
const SYSTEMS = ['pcow', 'pcow, plain', 'qcow2 virtio-blk'] as const;
type System = (typeof SYSTEMS)[number];

/** Seconds for one boot, after which something is wrong. */
const LIMIT = 900;

const file = (name: string): string => path.join(repository, 'build/guest/debian', name);

export const boots: Comparison = { name: 'boot', medium: 'disk', run, plots: () => ({}) };

/** Seconds: before the first process of the root, and from there. */
interface Report {
  kernel: number;
  userspace: number;
  clock: string;
}

async function run({ stand, record, short, say }: Bench): Promise<void> {
  const mount = await stand.mount(`0-${lastProcessor}`);
  await Image.create(path.join(mount.directory, 'base.pcow'), { size: SIZE });
  const flat = path.join(mount.mountpoint, 'base');
  await stand.command(
    ...['dd', `if=${file('root.img')}`, `of=${flat}`, 'bs=1M', 'conv=sparse,notrunc,fsync'],
  );
  await stand.command('sh', '-c', `echo installed > ${mount.mountpoint}/.pcow/base/snapshot`);
  const rounds = short ? 1 : 3;
  for (let round = 0; round < rounds; ++round) {
    say(`boot: round ${round + 1} of ${rounds} (${await accelerator()})`);
    const reports: [System, Report][] = [];
    for (const [number, system] of rotated(SYSTEMS, round).entries())
      reports.push([system, await boot(stand, mount, system, `vm${round}-${number}`)]);
    const clocks = new Set(reports.map(([, { clock }]) => clock));
    if (clocks.size > 1) {
      say(`boot: this round is void, the guests' clocks differ: ${[...clocks].join(', ')}`);
      continue;
    }
    for (const [system, { kernel, userspace }] of reports) {
      const of = { table: 'boot', system, unit: 's', better: 'less' as const };
      record.add({ ...of, row: ['kernel and initramfs'] }, kernel);
      record.add({ ...of, row: ['userspace until multi-user'] }, userspace);
    }
  }
  await mount.end();
}

async function boot(stand: Stand, mount: Mount, system: System, name: string): Promise<Report> {
  const report = stand.fresh('report');
  const device = await diskOf(stand, mount, system, name);
  const root =
    system === 'qcow2 virtio-blk' ? 'root=/dev/vda' : 'root=/dev/pmem0 rootflags=dax=always';
  await stand.command(
    ...['timeout', '-k', '5', String(LIMIT)],
    ...(system === 'pcow' ? stand.monitored() : []),
    ...['qemu-system-x86_64', '-accel', await accelerator(), '-cpu', 'max', '-m', '512M'],
    ...['-nodefaults', '-display', 'none', '-no-reboot', ...device],
    ...['-serial', 'null', '-serial', `file:${report}`],
    ...['-kernel', file('vmlinuz'), '-initrd', file('initrd')],
    ...['-append', `${root} rootfstype=ext4 rw console=ttyS0 quiet tsc=reliable`],
  );
  const text = await readFile(report, 'utf8');
  const [, first, ready, clock = ''] = /^(\d+) (\d+) (\S+)\s*$/.exec(text) ?? [];
  if (first === undefined) throw new Error(`${system}: the guest has not reported: ${text}`);
  const kernel = Number(first) / 1e6;
  return { kernel, userspace: Number(ready) / 1e6 - kernel, clock };
}

/** QEMU's options for a new clone. */
async function diskOf(
  stand: Stand,
  { directory, mountpoint }: Mount,
  system: System,
  name: string,
): Promise<string[]> {
  if (system === 'qcow2 virtio-blk') {
    const overlay = stand.fresh(`${name}.qcow2`);
    const base = file('root.img');
    await stand.command(
      ...['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', overlay],
    );
    return ['-drive', `if=virtio,file=${overlay},format=qcow2`];
  }
  await Image.create(path.join(directory, `${name}.pcow`), {
    base: { path: path.join(directory, 'base.pcow'), snapshot: 'installed' },
  });
  return pmemArgs(path.join(mountpoint, name), SIZE);
}
