/**
 * The flat file through FUSE, against qemu-storage-daemon's FUSE export of a qcow2 and qemu-nbd
 * with nbdfuse.
 */
import { closeSync, lstatSync, openSync, readdirSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { rotated, type Bench, type Comparison, type Latencies } from './comparison.js';
import { bars } from './plot.js';
import { advantage, find, type Ledger, type Results } from './results.js';
import { lastProcessor, type Served, type Stand } from './stand.js';

const MiB = 2 ** 20;
const SIZES = [4096, 65536, MiB];
const SYSTEMS = ['pcow', 'qemu-storage-daemon', 'qemu-nbd'] as const;
type System = (typeof SYSTEMS)[number];

interface Outcome extends Latencies {
  perSecond: number;
  megabytesPerSecond: number;
}

export const fuse: Comparison = { name: 'fuse', medium: 'disk', run, plots };

async function run({ stand, record, short, say }: Bench): Promise<void> {
  const length = (short ? 256 : 512) * MiB;
  const seconds = short ? 0.15 : 0.5;
  const rounds = short ? 3 : 5;
  for (const jobs of [1, 8]) {
    // One client and its server share a processor: this measures their work, not how the hypervisor
    // wakes another processor. Eight clients use all processors.
    const cpus = jobs === 1 ? String(lastProcessor) : `0-${lastProcessor}`;
    const served = new Map<System, Served>();
    for (const system of SYSTEMS) served.set(system, await serve(stand, system, length, cpus));
    const measured = (file: string, kind: string, pattern: string, size: number, table: string) =>
      stand.json<Outcome>(
        ...['taskset', '-c', cpus, stand.program('file-io'), file],
        ...[kind, pattern, String(size), String(jobs), table, String(seconds), String(length)],
      );
    for (let round = 0; round < rounds; ++round) {
      say(`fuse: ${jobs} ${jobs === 1 ? 'job' : 'jobs'}, round ${round + 1} of ${rounds}`);
      for (const [table, kind, pattern, size] of rows()) {
        for (const system of rotated(SYSTEMS, round)) {
          const file = served.get(system)?.file ?? '';
          const outcome = await measured(file, kind, pattern, size, table);
          record.add(
            {
              table,
              row: [kind, pattern, sizeName(size), String(jobs)],
              system,
              unit: 'MB/s',
              better: 'more',
            },
            outcome.megabytesPerSecond,
            outcome.histogram,
          );
        }
      }
      for (const kind of ['getattr', 'open']) {
        for (const system of rotated(SYSTEMS, round)) {
          const file = served.get(system)?.file ?? '';
          const outcome = await measured(file, kind, 'seq', 4096, 'cached');
          const of = {
            table: 'metadata',
            row: [kind, String(jobs)],
            system,
            unit: '1/s',
            better: 'more' as const,
          };
          record.add(of, outcome.perSecond, outcome.histogram);
        }
      }
    }
    for (const each of served.values()) await each.end();
  }
  for (const images of [10, 1000]) await listing(stand, record, images, rounds);
}

/** `ls -l` and an open of each file, as a backup program walks a mount. */
async function listing(
  stand: Stand,
  record: Ledger,
  images: number,
  rounds: number,
): Promise<void> {
  const mount = await stand.mount(`0-${lastProcessor}`);
  const { directory, mountpoint } = mount;
  const first = path.join(directory, '0.pcow');
  await Image.create(first, { size: 64 * MiB });
  for (let copy = 1; copy < images; ++copy)
    await copyFile(first, path.join(directory, `${copy}.pcow`));
  const files = () => readdirSync(mountpoint).map((name) => path.join(mountpoint, name));
  const steps: [string, () => void][] = [
    ['list and stat', () => files().forEach((file) => lstatSync(file))],
    ['open and close', () => files().forEach((file) => closeSync(openSync(file, 'r')))],
  ];
  // In the first round the mount opens the images.
  for (let round = 0; round <= rounds; ++round) {
    for (const [what, step] of steps) {
      const began = performance.now();
      step();
      const each = ((performance.now() - began) * 1000) / images;
      const of = {
        table: 'listing',
        row: [what],
        system: `${images} images`,
        unit: 'µs',
        better: 'less' as const,
      };
      if (round > 0) record.add(of, each);
    }
  }
  await mount.end();
}

function* rows(): Generator<['direct' | 'cached', 'read' | 'write', 'random' | 'seq', number]> {
  for (const table of ['direct', 'cached'] as const)
    for (const kind of ['write', 'read'] as const)
      for (const pattern of ['random', 'seq'] as const)
        for (const size of SIZES) yield [table, kind, pattern, size];
}

function sizeName(size: number): string {
  return size < MiB ? `${size / 1024} KiB` : `${size / MiB} MiB`;
}

/** An image with `length` bytes, all written once. */
async function serve(stand: Stand, system: System, length: number, cpus: string): Promise<Served> {
  const made = await serveEmpty(stand, system, length, cpus);
  await stand.command(
    'dd',
    'if=/dev/urandom',
    `of=${made.file}`,
    'bs=1M',
    `count=${length / MiB}`,
    'conv=notrunc',
    'status=none',
  );
  return made;
}

async function serveEmpty(
  stand: Stand,
  system: System,
  length: number,
  cpus: string,
): Promise<Served> {
  if (system === 'pcow') {
    const mount = await stand.mount(cpus);
    await Image.create(path.join(mount.directory, 'disk.pcow'), { size: length });
    return { file: path.join(mount.mountpoint, 'disk'), end: () => mount.end() };
  }
  const image = stand.fresh('disk.qcow2');
  await stand.command('qemu-img', 'create', '-q', '-f', 'qcow2', image, String(length));
  return system === 'qemu-nbd' ? stand.nbd(image, cpus) : stand.fuseExport(image, cpus);
}

function plots({ measurements }: Results): Record<string, string> {
  const drawn: Record<string, string> = {};
  for (const table of ['direct', 'cached']) {
    const mine = measurements.filter((each) => each.table === table && each.system === 'pcow');
    drawn[table] = bars({
      title: `Flat file, ${table} I/O: Pcow's throughput as a multiple of the peer's`,
      unit: '×',
      base: 1,
      groups: mine.map((each) => each.row.join(' ')),
      series: ['qemu-storage-daemon', 'qemu-nbd'].map((system) => ({
        name: system,
        values: mine.map((each) => {
          const other = find(measurements, table, each.row, system);
          return other ? advantage(each, other) : null;
        }),
      })),
    });
  }
  return drawn;
}
