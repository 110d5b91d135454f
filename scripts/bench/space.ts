/** Disk space used per byte written, for random 4 KiB writes over a base. */
import { rm, stat } from 'node:fs/promises';
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import type { Bench, Comparison } from './comparison.js';
import { lines } from './plot.js';
import { spreadOf, type Ledger, type Results } from './results.js';
import { lastProcessor } from './stand.js';

const MiB = 2 ** 20;
/** Bytes written of each 64 KiB, on average, in pages. */
const DENSITIES = [0.25, 1, 4];
/** The limit of mappings of a process: set by Pcow's Debian package, and the kernel's default. */
const MAPPINGS = 1_048_576;
const DEFAULT_MAPPINGS = 65_530;
const FEW_MAPPINGS = 'pcow, monitored, 65,530 mappings';
const SYSTEMS = ['pcow', 'pcow, monitored', FEW_MAPPINGS, 'qcow2', 'qcow2, extended L2'] as const;

export const space: Comparison = { name: 'space', medium: 'disk', run, plots };

async function run({ stand, record, short, say }: Bench): Promise<void> {
  const length = (short ? 256 : 1024) * MiB;
  const restore = await stand.raise('/proc/sys/vm/max_map_count', MAPPINGS);
  const mount = await stand.mount(`0-${lastProcessor}`);
  const base = path.join(mount.directory, 'base.pcow');
  await Image.create(base, { size: length });
  const image = await Image.open(base, { write: true });
  const bytes = Buffer.alloc(MiB, 'b');
  for (let at = 0; at < length; at += MiB) await image.write(bytes, at);
  await image.snapshot('full');
  await image.close();
  const qcow2Base = stand.fresh('base.qcow2');
  await stand.command(
    'qemu-img',
    'convert',
    '-O',
    'qcow2',
    path.join(mount.mountpoint, '.pcow/base/at/full'),
    qcow2Base,
  );

  for (const density of DENSITIES) {
    say(`space: ${density} pages a block`);
    const pages = Math.round((length / 65536) * density);
    for (const system of SYSTEMS) {
      const vm = await over(system);
      const words = [vm.flat, String(length), String(pages)];
      const store = system.includes('monitored');
      const budget =
        system === FEW_MAPPINGS
          ? ['env', `PCOW_MAPPING_BUDGET=${Math.floor(DEFAULT_MAPPINGS / 4) * 3}`]
          : [];
      const { written } = await stand.json<{ written: number }>(
        ...[...budget, ...(store ? stand.monitored() : []), stand.program('scatter')],
        ...[store ? 'store' : 'write', ...words],
      );
      await vm.end();
      const { blocks } = await stat(vm.image);
      const row = [String(density)];
      record.add(
        { table: 'amplification', row, system, unit: '×', better: 'less' },
        (blocks * 512) / written,
      );
      await rm(vm.image);
    }
  }
  await mount.end();
  await restore();
  say('space: the length of the file');
  for (let round = 0; round < (short ? 1 : 3); ++round)
    await lengthOfFile(stand.fresh('long.pcow'), record);

  async function over(
    system: string,
  ): Promise<{ image: string; flat: string; end(): Promise<void> }> {
    if (system.startsWith('pcow')) {
      const file = path.join(mount.directory, 'vm.pcow');
      await Image.create(file, { base: { path: base, snapshot: 'full' } });
      const flat = path.join(mount.mountpoint, 'vm');
      return { image: file, flat, end: () => stand.command('sync', file).then(() => undefined) };
    }
    const file = stand.fresh('vm.qcow2');
    const options = system === 'qcow2' ? 'cluster_size=64k' : 'cluster_size=64k,extended_l2=on';
    await stand.command(
      'qemu-img',
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      options,
      '-b',
      qcow2Base,
      '-F',
      'qcow2',
      file,
    );
    const served = await stand.fuseExport(file, `0-${lastProcessor}`);
    return { image: file, flat: served.file, end: () => served.end() };
  }
}

/**
 * Snapshots that come and go while a few pages are written between them: how long the file becomes;
 * and, before and after that, how fast it is written in order, and in how many pieces that lies.
 */
async function lengthOfFile(file: string, record: Ledger): Promise<void> {
  const [size, data, pages] = [1024 * MiB, 256 * MiB, 32];
  await Image.create(file, { size });
  const image = await Image.open(file, { write: true });
  const bytes = Buffer.alloc(MiB, 'b');
  const writeInOrder = async (): Promise<number> => {
    const began = performance.now();
    for (let at = 0; at < data; at += MiB) await image.write(bytes, at);
    return data / MiB / ((performance.now() - began) / 1000);
  };
  const before = await writeInOrder();
  for (let number = 1; number <= 200; ++number) {
    await image.snapshot(`s${number}`);
    for (let page = 0; page < pages; ++page)
      await image.write(bytes.subarray(0, 4096), scattered(number * pages + page, data));
    if (number > 10) await image.delete(`s${number - 10}`);
  }
  const add = (row: string, unit: string, better: 'less' | 'more', value: number): void =>
    record.add({ table: 'length', system: 'pcow', row: [row], unit, better }, value);
  const snapshots = image.snapshots().reduce((sum, snapshot) => sum + snapshot.data, 0);
  add('length of the file', '×', 'less', (await stat(file)).size / (size + snapshots));
  await image.snapshot('last');
  add('writing in order', '×', 'more', (await writeInOrder()) / before);
  let [pieces, end] = [0, -1];
  for await (const extent of image.map()) {
    if (extent.depth !== 0 || extent.place === null) continue;
    if (extent.place !== end) ++pieces;
    end = extent.place + extent.length;
  }
  add('pieces for each 32 MiB in order', '', 'less', pieces / (data / (32 * MiB)));
  await image.close();
  await rm(file);
}

/** The offset of a page, the same in every run. */
function scattered(number: number, length: number): number {
  return ((number * 40_503) % (length / 4096)) * 4096;
}

function plots({ measurements }: Results): Record<string, string> {
  return {
    space: lines({
      title: 'Disk used for each byte written, random pages over a base',
      x: {
        label: 'pages of 4 KiB written in each 64 KiB, on average',
        logarithmic: true,
        names: new Map(DENSITIES.map((d) => [d, String(d)])),
      },
      y: { label: 'bytes on the disk for each byte written', logarithmic: true },
      series: SYSTEMS.map((name) => ({
        name,
        points: measurements
          .filter((each) => each.table === 'amplification' && each.system === name)
          .map((each): [number, number] => [Number(each.row[0]), spreadOf(each.values).median]),
      })),
    }),
  };
}
