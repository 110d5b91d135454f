/**
 * A process on the host that maps a file: memory that was touched, first touches, copies on write,
 * reads of a base.
 */
import { rm } from 'node:fs/promises';
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { diskStatistics } from './disk-statistics.js';
import { rotated, type Bench, type Comparison, type Latencies } from './comparison.js';
import { lines, shares } from './plot.js';
import { find, spreadOf, type Results } from './results.js';
import { freshFile, lastProcessor, type Mount, type Stand } from './stand.js';

const KiB = 1024;
const MiB = 2 ** 20;

interface Outcome extends Latencies {
  seconds: number;
  perSecond: number;
}

interface Touch {
  name: string;
  /** The image before: empty, on a full base, or full and just frozen by a snapshot. */
  on: 'nothing' | 'base' | 'snapshot';
  stride: number;
  size: number;
  order: 'seq' | 'random';
  kind: 'write' | 'read';
  threads: number;
  /** Whether the touching thread and the serving one share a processor. */
  together?: boolean;
}

const EXPANSION: Touch[] = [
  {
    name: 'sequential, whole pages',
    on: 'nothing',
    stride: 4096,
    size: 4096,
    order: 'seq',
    kind: 'write',
    threads: 1,
  },
  {
    name: 'random, whole pages',
    on: 'nothing',
    stride: 4096,
    size: 4096,
    order: 'random',
    kind: 'write',
    threads: 1,
  },
  {
    name: 'one byte a block, sequential',
    on: 'nothing',
    stride: 64 * KiB,
    size: 1,
    order: 'seq',
    kind: 'write',
    threads: 1,
  },
  {
    name: 'one byte a block, random',
    on: 'nothing',
    stride: 64 * KiB,
    size: 1,
    order: 'random',
    kind: 'write',
    threads: 1,
  },
];
const COPIES: Touch[] = (['base', 'snapshot'] as const).flatMap((on) => [
  {
    name: `one byte a block, ${after(on)}`,
    on,
    stride: 64 * KiB,
    size: 1,
    order: 'random',
    kind: 'write',
    threads: 1,
  },
  {
    name: `whole blocks, ${after(on)}`,
    on,
    stride: 64 * KiB,
    size: 64 * KiB,
    order: 'random',
    kind: 'write',
    threads: 1,
  },
]);
const READS: Touch[] = [
  {
    name: 'sequential pages',
    on: 'base',
    stride: 4096,
    size: 4096,
    order: 'seq',
    kind: 'read',
    threads: 1,
  },
  {
    name: 'one page a block, random',
    on: 'base',
    stride: 64 * KiB,
    size: 1,
    order: 'random',
    kind: 'read',
    threads: 1,
  },
];
const ONE_PROCESSOR: Touch[] = [...EXPANSION.slice(0, 2), ...COPIES.slice(0, 1)].map((t) => ({
  ...t,
  together: true,
}));
const THREADS = [1, 2, 4, 8];
/** Ways to prepare a run for first touches, as the program "runs" expects them. */
const WAYS = new Map([
  ['mapped only', 'm'],
  ['fallocate, mapped', 'am'],
  ['zeros written, mapped', 'zm'],
  ['fallocate, zeros written, mapped', 'azm'],
  ['fallocate, mapped with MADV_HUGEPAGE', 'amh'],
  ['fallocate, mapped with MADV_HUGEPAGE, MADV_POPULATE_WRITE', 'amhp'],
]);

function after(on: Touch['on']): string {
  return on === 'base' ? 'over a base' : 'after a snapshot';
}

export const mapping: Comparison = { name: 'mapping', medium: 'disk', run, plots };

async function run(bench: Bench): Promise<void> {
  const { stand, record, short, say } = bench;
  const length = (short ? 128 : 256) * MiB;
  const rounds = short ? 5 : 9;
  const bases = await makeBase(stand, length);
  const touch = (file: string, prefix: string[], t: Touch) =>
    stand.json<Outcome>(
      ...[
        ...prefix,
        stand.program('touch'),
        file,
        String(length),
        String(t.stride),
        String(t.size),
      ],
      ...[t.order, t.kind, String(t.threads), t.together ? 'together' : 'apart'],
    );
  const add = (table: string, row: string[], system: string, outcome: Outcome) => {
    const common = { table, row, system } as const;
    record.add({ ...common, table, unit: '1/s', better: 'more' }, outcome.perSecond);
    record.add(
      { ...common, table: `${table} p50`, unit: 'µs', better: 'less' },
      outcome.p50,
      outcome.histogram,
    );
    record.add({ ...common, table: `${table} p99`, unit: 'µs', better: 'less' }, outcome.p99);
  };
  const measure = async (table: string, t: Touch, row: string[], system: string) => {
    if (system === 'raw' || system === 'floor') {
      const file = stand.fresh('raw');
      await freshFile(file, length);
      add(table, row, system, await touch(system === 'floor' ? `floor:${file}` : file, [], t));
      await rm(file);
      return;
    }
    const file = await prepared(bases, t.on, length);
    add(table, row, system, await touch(file.flat, system === 'pcow' ? stand.monitored() : [], t));
    await file.remove();
  };

  for (let round = 0; round < rounds; ++round) {
    say(`mapping: round ${round + 1} of ${rounds}`);
    for (const t of EXPANSION)
      for (const system of rotated(['pcow', 'pcow, plain', 'raw'], round))
        await measure('expansion', t, [t.name], system);
    for (const t of COPIES)
      for (const system of rotated(['pcow', 'pcow, plain', 'floor'], round))
        if (system !== 'floor' || t.size === 1) await measure('copies', t, [t.name], system);
    for (const t of READS)
      for (const system of rotated(['pcow', 'pcow, plain'], round))
        await measure('reads', t, [t.name], system);
    for (const t of ONE_PROCESSOR)
      for (const system of rotated(['pcow', t.on === 'base' ? 'floor' : 'raw'], round))
        await measure('one processor', t, [t.name], system);
    for (const threads of THREADS)
      for (const system of rotated(['pcow', 'raw'], round)) {
        const t: Touch = { ...EXPANSION[1]!, threads };
        await measure('threads', t, ['random first touch', String(threads)], system);
      }
    for (const threads of THREADS)
      for (const system of rotated(['pcow', 'floor'], round)) {
        const t: Touch = { ...COPIES[0]!, threads };
        await measure('threads', t, ['copy-on-write, one byte a block', String(threads)], system);
      }
    for (const pattern of ['seq', 'random'])
      for (const system of rotated(['pcow', 'pcow, plain', 'raw'], round))
        await durable(bench, bases, length, pattern, system);
    for (const [name, way] of WAYS) {
      const file = stand.fresh('raw');
      await freshFile(file, length);
      const outcome = await stand.json<Record<string, number>>(
        stand.program('runs'),
        file,
        String(length),
        way,
      );
      for (const [system, value] of Object.entries(outcome))
        record.add({ table: 'runs', row: [name], system, unit: 'µs', better: 'less' }, value);
      await rm(file);
    }
  }

  await memory(bench, bases, length);
  await bases.end();
}

/** Reads and writes of memory that has been touched once. */
async function memory({ stand, record, say }: Bench, bases: Mount, length: number): Promise<void> {
  say('mapping: memory once touched');
  const vm = await prepared(bases, 'nothing', length);
  const raw = stand.fresh('raw');
  await freshFile(raw, length);
  const passes = await stand.json<Record<string, [number[], number[]]>>(
    ...[...stand.monitored(), stand.program('memory'), vm.flat, raw, String(length), '25'],
  );
  for (const [pass, [mine, theirs]] of Object.entries(passes)) {
    const of = { table: 'memory', row: [pass], unit: 's', better: 'less' as const };
    for (const value of mine) record.add({ ...of, system: 'pcow' }, value);
    for (const value of theirs) record.add({ ...of, system: 'raw' }, value);
  }
  await vm.remove();
  await rm(raw);
}

/**
 * 64 bytes stored and msynced repeatedly: how long each takes, and what goes to the disk for it.
 */
async function durable(
  { stand, record, short }: Bench,
  bases: Mount,
  length: number,
  pattern: string,
  system: string,
): Promise<void> {
  const image = system === 'raw' ? null : await prepared(bases, 'nothing', length);
  const file = image?.flat ?? stand.fresh('raw');
  if (!image) await freshFile(file, length);
  const statistics = diskStatistics(stand.scratch);
  const { p50, bytesWritten } = await stand.json<Latencies & { bytesWritten: number }>(
    ...[
      ...(system === 'pcow' ? stand.monitored() : []),
      stand.program('durable'),
      file,
      String(length),
    ],
    ...['64', pattern, 'msync', short ? '0.3' : '1', ...(statistics === null ? [] : [statistics])],
  );
  const of = { row: [pattern], system, better: 'less' as const };
  record.add({ ...of, table: 'durable', unit: 'µs' }, p50);
  if (statistics !== null)
    record.add({ ...of, table: 'durable disk', unit: 'KiB' }, bytesWritten / KiB);
  await (image ? image.remove() : rm(file));
}

/** A mount with an image that is full, and has the snapshot "full". */
async function makeBase(stand: Stand, length: number): Promise<Mount> {
  const mount = await stand.mount(String(lastProcessor));
  const base = path.join(mount.directory, 'base.pcow');
  await Image.create(base, { size: length });
  const image = await Image.open(base, { write: true });
  await fill(image, length);
  await image.snapshot('full');
  await image.close();
  return mount;
}

async function fill(image: Image, length: number): Promise<void> {
  const bytes = Buffer.alloc(MiB, 'b');
  for (let at = 0; at < length; at += MiB) await image.write(bytes, at);
}

let images = 0;

/** A new image as needed for the touches, and its flat file. */
async function prepared(
  { directory, mountpoint }: Mount,
  on: Touch['on'],
  length: number,
): Promise<{ flat: string; remove(): Promise<void> }> {
  const name = `vm${++images}`;
  const file = path.join(directory, `${name}.pcow`);
  if (on === 'base') {
    await Image.create(file, {
      base: { path: path.join(directory, 'base.pcow'), snapshot: 'full' },
    });
  } else {
    await Image.create(file, { size: length });
  }
  if (on === 'snapshot') {
    const image = await Image.open(file, { write: true });
    await fill(image, length);
    await image.snapshot('full');
    await image.close();
  }
  // Not through the mount, which deletes no image that holds anything.
  return { flat: path.join(mountpoint, name), remove: () => rm(file) };
}

function plots({ measurements }: Results): Record<string, string> {
  const histograms = (table: string, row: string, systems: string[]) =>
    systems.flatMap((system) => {
      const histogram = find(measurements, `${table} p50`, [row], system)?.histogram;
      return histogram ? [{ name: system, histogram }] : [];
    });
  const byThreads = (row: string, systems: string[]) =>
    systems.map((name) => ({
      name,
      points: THREADS.flatMap((threads): [number, number][] => {
        const found = find(measurements, 'threads', [row, String(threads)], name);
        return found ? [[threads, spreadOf(found.values).median]] : [];
      }),
    }));
  const byte = 'one byte a block, over a base';
  const names = new Map(THREADS.map((threads) => [threads, String(threads)]));
  return {
    copies: shares(
      'Copy-on-write of one byte a block, over a base',
      histograms('copies', byte, ['pcow', 'floor', 'pcow, plain']),
    ),
    expansion: shares(
      'First touch, random pages',
      histograms('expansion', 'random, whole pages', ['pcow', 'raw', 'pcow, plain']),
    ),
    threads: lines({
      title: 'First touches of a second, by threads',
      x: { label: 'threads', logarithmic: true, names },
      y: { label: 'touches a second', logarithmic: true },
      series: [
        ...byThreads('random first touch', ['pcow', 'raw']).map((each) => ({
          ...each,
          name: `expansion: ${each.name}`,
        })),
        ...byThreads('copy-on-write, one byte a block', ['pcow', 'floor']).map((each) => ({
          ...each,
          name: `copy: ${each.name}`,
        })),
      ],
    }),
  };
}
