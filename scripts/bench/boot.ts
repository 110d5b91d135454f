/**
 * The boot of a distribution (scripts/bench/guest/debian) until multi-user.target, each time on a
 * new clone of the same root file system, as it would be installed.
 */
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { accelerator } from '../guest/accelerator.js';
import { pmemArgs } from '../guest/guest.js';
import { rotated, type Bench, type Comparison } from './comparison.js';
import { type Boot, bootDebian, DEBIAN_SIZE as SIZE, debianRoot, type Disk } from './debian.js';
import { lastProcessor, type Mount, type Stand } from './stand.js';

const SYSTEMS = ['pcow', 'pcow, plain', 'qcow2 virtio-blk'] as const;
type System = (typeof SYSTEMS)[number];

export const boots: Comparison = { name: 'boot', medium: 'disk', run, plots: () => ({}) };

async function run({ stand, record, short, say }: Bench): Promise<void> {
  const mount = await stand.mount(`0-${lastProcessor}`);
  await Image.create(path.join(mount.directory, 'base.pcow'), { size: SIZE });
  const flat = path.join(mount.mountpoint, 'base');
  await stand.command(
    ...['dd', `if=${debianRoot}`, `of=${flat}`, 'bs=1M', 'conv=sparse,notrunc,fsync'],
  );
  await stand.command('sh', '-c', `echo installed > ${mount.mountpoint}/.pcow/base/snapshot`);
  const rounds = short ? 1 : 3;
  for (let round = 0; round < rounds; ++round) {
    say(`boot: round ${round + 1} of ${rounds} (${await accelerator()})`);
    const reports: [System, Boot][] = [];
    for (const [number, system] of rotated(SYSTEMS, round).entries())
      reports.push([
        system,
        await bootDebian(stand, await diskOf(stand, mount, system, `vm${round}-${number}`)),
      ]);
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

/** A new clone. */
async function diskOf(
  stand: Stand,
  { directory, mountpoint }: Mount,
  system: System,
  name: string,
): Promise<Disk> {
  if (system === 'qcow2 virtio-blk') {
    const overlay = stand.fresh(`${name}.qcow2`);
    await stand.command(
      ...['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', debianRoot, '-F', 'raw', overlay],
    );
    const device = ['-drive', `if=virtio,file=${overlay},format=qcow2`];
    return { device, medium: 'block', under: [] };
  }
  await Image.create(path.join(directory, `${name}.pcow`), {
    base: { path: path.join(directory, 'base.pcow'), snapshot: 'installed' },
  });
  const device = pmemArgs(path.join(mountpoint, name), SIZE);
  return { device, medium: 'pmem', under: system === 'pcow' ? stand.monitored() : [] };
}
