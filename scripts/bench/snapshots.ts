/**
 * Snapshots of memory that is in use: how long the writer is paused, how long until the snapshot is
 * durable, how the work continues; and deletion, rollback, clone and opening of images with much
 * data.
 */
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { Image } from '../../src/engine/index.js';
import { rotated, type Bench, type Comparison } from './comparison.js';
import { bars, lines } from './plot.js';
import { spreadOf, type Measurement, type Results } from './results.js';
import { freshFile, lastProcessor, type Conversation, type Mount, type Stand } from './stand.js';

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const TiB = 2 ** 40;

interface Report {
  longestUs: number;
  steps: number;
  seconds: number;
  timeline: number[];
}

export const snapshots: Comparison = { name: 'snapshots', medium: 'disk', run, plots };

async function run(bench: Bench): Promise<void> {
  // Not on the writer's processor, where the writer would wait for us.
  const restore = await bench.stand.place(String(lastProcessor));
  await stalls(bench);
  await freshStalls(bench);
  await work(bench);
  await restore();
  await unmapping(bench);
  await structure(bench);
  await opening(bench);
}

/** Whether the data of a writer is on the disk when it begins, as it soon would be anyway. */
type State = 'written-back' | 'fresh';

/** A writer on the first `mapped` bytes of the mount's image, which are all written. */
function writer(stand: Stand, mount: Mount, mapped: number, state: State): Promise<Conversation> {
  return write(stand, stand.monitored(), path.join(mount.mountpoint, 'vm'), mapped, state);
}

async function create(mount: Mount, size: number): Promise<string> {
  const file = path.join(mount.directory, 'vm.pcow');
  await Image.create(file, { size });
  return file;
}

function write(
  stand: Stand,
  prefix: string[],
  file: string,
  mapped: number,
  state: State,
): Promise<Conversation> {
  return stand.conversation(...prefix, stand.program('writer'), file, String(mapped), '1', state);
}

/**
 * The longest stall of a writing thread during one snapshot, and the duration of the snapshot, in
 * milliseconds.
 */
async function snapshot(
  mount: Mount,
  name: string,
  guest: Conversation,
): Promise<{ stall: number; durable: number; freeze: number }> {
  await guest.ask<Report>();
  const { liveSnapshots: taken } = await readCounts(mount);
  const began = performance.now();
  await writeFile(path.join(mount.mountpoint, '.pcow/vm/snapshot'), name);
  const durable = performance.now() - began;
  await sleep(50);
  const { longestUs } = await guest.ask<Report>();
  let counts = await readCounts(mount);
  while (counts.liveSnapshots <= taken) {
    await sleep(50); // the mount may give a report from before the snapshot
    counts = await readCounts(mount);
  }
  return { stall: longestUs / 1000, durable, freeze: counts.lastFreezeNs / 1e6 };
}

/** The monitor's report, in nanoseconds, and faults by kind. */
interface Counts {
  liveSnapshots: number;
  lastFreezeNs: number;
  faults: Record<string, { count: number; p50Us: number; p99Us: number }>;
}

async function readCounts({ mountpoint }: Mount): Promise<Counts> {
  const text = await readFile(path.join(mountpoint, '.pcow/vm/status'), 'utf8');
  const { attached } = JSON.parse(text) as { attached: { monitor: Counts | null } | null };
  return attached?.monitor ?? { liveSnapshots: 0, lastFreezeNs: 0, faults: {} };
}

async function stalls({ stand, record, short, say }: Bench): Promise<void> {
  const cuts = short ? 5 : 20;
  const add = (
    row: string[],
    { stall, durable, freeze }: { stall: number; durable: number; freeze: number },
  ) => {
    const of = { row, system: 'pcow', unit: 'ms', better: 'less' as const };
    record.add({ ...of, table: 'stall' }, stall);
    record.add({ ...of, table: 'freeze' }, freeze);
    record.add({ ...of, table: 'durable' }, durable);
  };
  const measure = async (row: string[], size: number, mapped: number, before: number) => {
    say(`snapshots: ${row.join(', ')}`);
    const mount = await stand.mount(String(lastProcessor));
    const file = await create(mount, size);
    if (before > 0) {
      const image = await Image.open(file, { write: true });
      const bytes = Buffer.alloc(65536, 'd');
      for (let number = 0; number < before; ++number) {
        await image.write(bytes, ((number * 65536) % mapped) + 0);
        await image.snapshot(`s${number}`);
      }
      await image.close();
    }
    const guest = await writer(stand, mount, mapped, 'written-back');
    await look(guest, row, 'before the first');
    for (let cut = 0; cut < cuts; ++cut) add(row, await snapshot(mount, `cut${cut}`, guest));
    await sleep(1000);
    await look(guest, row, 'after the last');
    await guest.end();
    await mount.end();
  };
  // Other causes of pauses, for about the same time.
  const look = async (guest: Conversation, row: string[], system: string) => {
    for (let number = 0; number < cuts; ++number) {
      await guest.ask<Report>();
      await sleep(100);
      const { longestUs } = await guest.ask<Report>();
      record.add({ table: 'quiet', row, system, unit: 'ms', better: 'less' }, longestUs / 1000);
    }
  };
  for (const size of [GiB, 32 * GiB, TiB, 16 * TiB])
    await measure(['size of the image', bytesOf(size)], size, 256 * MiB, 0);
  for (const mapped of [64 * MiB, 512 * MiB, ...(short ? [GiB] : [2 * GiB, 8 * GiB])]) {
    const row = ['mapped memory', bytesOf(mapped)];
    await measure(row, 16 * GiB, mapped, 0);
    const raw = stand.fresh('raw');
    await freshFile(raw, mapped);
    const guest = await write(stand, [], raw, mapped, 'written-back');
    await look(guest, row, 'raw file');
    await guest.end();
    await rm(raw);
  }
  for (const before of [1, 10, 100, 1000])
    await measure(['snapshots below', String(before)], GiB, 256 * MiB, before);
}

/** A snapshot, and an fsync(2) of a raw file, when everything mapped has just been written. */
async function freshStalls({ stand, record, short, say }: Bench): Promise<void> {
  for (const mapped of short ? [GiB] : [GiB, 8 * GiB])
    for (let round = 0; round < 3; ++round) {
      say(`snapshots: nothing written back yet, ${bytesOf(mapped)}, round ${round + 1} of 3`);
      const of = { table: 'fresh', row: [bytesOf(mapped)], unit: 'ms', better: 'less' as const };
      for (const system of rotated(['pcow, snapshot', 'raw, fsync'], round)) {
        if (system === 'raw, fsync') {
          const raw = stand.fresh('raw');
          await freshFile(raw, mapped);
          const guest = await write(stand, [], raw, mapped, 'fresh');
          await guest.ask<Report>();
          await stand.command('sync', raw);
          record.add({ ...of, system }, (await guest.ask<Report>()).longestUs / 1000);
          await guest.end();
          await rm(raw);
          continue;
        }
        const mount = await stand.mount(String(lastProcessor));
        await create(mount, 16 * GiB);
        const guest = await writer(stand, mount, mapped, 'fresh');
        record.add({ ...of, system }, (await snapshot(mount, 'cut', guest)).stall);
        await guest.end();
        await mount.end();
      }
    }
}

/** Ten seconds of a mixed workload before a snapshot and after it. */
async function work({ stand, record, short, say }: Bench): Promise<void> {
  const seconds = 10;
  const rounds = short ? 2 : 3;
  for (const mapped of short ? [512 * MiB] : [512 * MiB, 4 * GiB]) {
    for (let round = 0; round < rounds; ++round) {
      say(`snapshots: work before and after, ${bytesOf(mapped)}, round ${round + 1} of ${rounds}`);
      const mount = await stand.mount(String(lastProcessor));
      await create(mount, 16 * GiB);
      const guest = await writer(stand, mount, mapped, 'written-back');
      await sleep(500);
      await guest.ask<Report>();
      await sleep(seconds * 1000);
      const before = await guest.ask<Report>();
      const countsBefore = await readCounts(mount);
      const began = performance.now();
      const done = writeFile(path.join(mount.mountpoint, '.pcow/vm/snapshot'), 'cut').then(
        () => performance.now() - began,
      );
      await sleep(seconds * 1000);
      const after = await guest.ask<Report>();
      const durable = await done;
      const counts = await readCounts(mount);
      await guest.end();
      await mount.end();
      const rate = (report: Report) => report.steps / report.seconds;
      const of = {
        row: [bytesOf(mapped)],
        unit: 'steps/s',
        better: 'more' as const,
        table: 'work',
      };
      record.add({ ...of, system: 'after' }, rate(after));
      record.add({ ...of, system: 'before' }, rate(before));
      const spent = { row: [bytesOf(mapped)], better: 'less' as const };
      record.add({ ...spent, table: 'work sync', system: 'until durable', unit: 'ms' }, durable);
      for (const [kind, { count, p50Us, p99Us }] of Object.entries(counts.faults)) {
        const of = {
          row: [bytesOf(mapped), kind.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)],
          better: 'less' as const,
        };
        const faults = count - (countsBefore.faults[kind]?.count ?? 0);
        record.add(
          { ...of, table: 'work faults', system: 'faults', unit: 'in ten seconds' },
          faults,
        );
        record.add({ ...of, table: 'work latencies', system: 'p50', unit: 'µs' }, p50Us);
        record.add({ ...of, table: 'work latencies', system: 'p99', unit: 'µs' }, p99Us);
      }
      [...before.timeline.slice(-10), ...after.timeline].forEach((steps, slot) => {
        record.add(
          {
            table: 'timeline',
            row: [bytesOf(mapped), String((slot - 10) / 10)],
            system: 'pcow',
            unit: 'steps',
            better: 'more',
          },
          steps,
        );
      });
    }
  }
}

/** What the takedown in steps avoids: unmapping all of it at once. */
async function unmapping({ stand, record, short, say }: Bench): Promise<void> {
  say('snapshots: unmapping at once');
  for (const mapped of short ? [GiB] : [GiB, 8 * GiB])
    for (let round = 0; round < 3; ++round) {
      const { milliseconds } = await stand.json<{ milliseconds: number }>(
        stand.program('unmap'),
        stand.fresh('raw'),
        String(mapped),
      );
      record.add(
        {
          table: 'unmapping',
          row: [bytesOf(mapped)],
          system: 'munmap',
          unit: 'ms',
          better: 'less',
        },
        milliseconds,
      );
    }
}

/** Deletion, rollback and clone by the depth of the chain. */
async function structure({ stand, record, short, say }: Bench): Promise<void> {
  for (const depth of [1, 10, 100, ...(short ? [] : [1000])]) {
    say(`snapshots: a chain of ${depth}`);
    for (let round = 0; round < 3; ++round) {
      const file = stand.fresh('deep.pcow');
      await Image.create(file, { size: GiB });
      const image = await Image.open(file, { write: true });
      const bytes = Buffer.alloc(MiB, 'd');
      for (let number = 0; number < depth; ++number) {
        await image.write(bytes, (number % 1024) * MiB);
        await image.snapshot(`s${number}`);
      }
      const add = async (what: string, act: () => Promise<unknown>) => {
        const began = performance.now();
        await act();
        record.add(
          {
            table: 'structure',
            row: [what, String(depth)],
            system: 'pcow',
            unit: 'ms',
            better: 'less',
          },
          performance.now() - began,
        );
      };
      await add('snapshot', () => image.snapshot('newest'));
      await add('deletion of a snapshot in the middle', () =>
        image.delete(`s${Math.floor(depth / 2)}`),
      );
      await add('rollback to the newest', () => image.rollback('newest'));
      await add('clone of the newest', () =>
        Image.create(`${file}.clone`, { base: { path: file, snapshot: 'newest' } }),
      );
      await add('random 4 KiB read, first', () => image.read(Buffer.alloc(4096), 5 * MiB));
      await add('closing', () => image.close());
      await add('opening to read', async () => (await Image.open(file)).close());
      await add('opening to write', async () => (await Image.open(file, { write: true })).close());
      await rm(file);
      await rm(`${file}.clone`);
    }
  }
}

/** Opening a large image with 100 snapshots that is half full; and attaching to it. */
async function opening({ stand, record, short, say }: Bench): Promise<void> {
  for (const [pattern, perChunk] of [
    ['in runs', 512],
    ['scattered', 128],
  ] as const) {
    say(`snapshots: opening 1 TiB with 100 snapshots, half full, ${pattern}`);
    const directory = stand.fresh('large');
    await mkdir(directory);
    const file = path.join(directory, 'vm.pcow');
    await Image.create(file, { size: TiB });
    const image = await Image.open(file, { write: true });
    for (let number = 0; number < 100; ++number) await image.snapshot(`s${number}`);
    await image.close();
    await stand.command(stand.program('fill-tables'), file, String(perChunk));
    const add = (row: string, value: number) =>
      record.add(
        { table: 'opening', row: [row, pattern], system: 'pcow', unit: 'ms', better: 'less' },
        value,
      );
    const rounds = short ? 5 : 9;
    for (let round = 0; round < rounds; ++round) {
      for (const way of rotated(['read', 'write'], round)) {
        const began = performance.now();
        const opened = await Image.open(file, { write: way === 'write' });
        add(`opening to ${way}`, performance.now() - began);
        await opened.close();
      }
    }
    const mount = await stand.mount(`0-${lastProcessor}`, directory);
    for (let round = 0; round < rounds; ++round) {
      const words = [
        ...stand.monitored(),
        stand.program('attach'),
        path.join(mount.mountpoint, 'vm'),
      ];
      add('attaching', (await stand.json<{ milliseconds: number }>(...words)).milliseconds);
    }
    await mount.end();
  }
}

function bytesOf(size: number): string {
  if (size >= TiB) return `${size / TiB} TiB`;
  return size >= GiB ? `${size / GiB} GiB` : `${size / MiB} MiB`;
}

function plots({ measurements }: Results): Record<string, string> {
  const of = (table: string) => measurements.filter((each) => each.table === table);
  const stall = of('stall');
  const timeline = of('timeline');
  const sizes = [...new Set(timeline.map((each) => each.row[0] ?? ''))];
  return {
    stalls: bars({
      title: 'Longest stall of a writing thread by a live snapshot, and time until it is durable',
      unit: 'ms',
      groups: stall.map((each) => each.row.join(': ')),
      series: [
        { name: 'stall', values: stall.map((each) => spreadOf(each.values)) },
        { name: 'durable', values: of('durable').map((each) => spreadOf(each.values)) },
      ],
    }),
    timeline: lines({
      title: 'Work of a mixed workload around a live snapshot (at 0 s)',
      x: { label: 'seconds' },
      y: { label: 'steps in each 100 ms' },
      series: sizes.map((size) => ({
        name: size,
        points: timeline.filter((each) => each.row[0] === size).map(point),
      })),
    }),
  };
}

function point(each: Measurement): [number, number] {
  return [Number(each.row[1]), spreadOf(each.values).median];
}
