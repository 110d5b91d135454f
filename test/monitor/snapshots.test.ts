/**
 * Live snapshots of memory that a process has mapped under the monitor: they are consistent cuts,
 * and nothing is lost.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { stateOf, threadsOf } from '../../src/engine/processes.js';
import { effort } from '../helpers/effort.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { attachedTo, imageOnBase, monitored, monitorReport } from '../helpers/monitored.js';
import { type Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { type CutShape, checkCut, cutSize } from '../mount/cut-record.js';

const PAGE = 4096;
const BLOCK = 65536;
const SIZE = 8 * MiB;
const SHAPE: CutShape = { threads: 4, pages: 200 };
const RECORD_END = 1024;
const SNAPSHOTS = effort(12, 40, 'PCOW_SNAPSHOTS');
const STEPS = effort(150, 1000);

async function writerOn(mount: TestMount, name: string): Promise<Conversation> {
  const writer = await program('cut-writer', mount.scratch);
  return monitored(mount.t, writer, [mount.file(name), String(SHAPE.threads), String(SHAPE.pages)]);
}

/**
 * The byte that fills a block of the base: every third block is a hole. The writer's records begin
 * as zeros.
 */
function baseByte(block: number): number {
  return block % 3 === 0 ? 0 : 1 + (block % 255);
}

test.serial(
  'snapshots under threads that write over a base and over holes are consistent cuts',
  async (t) => {
    const mount = await imagesFor(t, {});
    await imageOnBase(mount, 'vm1', SIZE, baseByte);
    await mount.mount();
    // A record's number must be 0 before its first write.
    const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    for (let page = 0; page < cutSize(SHAPE) / PAGE; page += 2)
      await tool.ask(`write ${page * PAGE} ${RECORD_END} 0`);
    for (let page = 1; page < cutSize(SHAPE) / PAGE; page += 2)
      await tool.ask(`write ${page * PAGE} ${RECORD_END} 0`);
    await tool.end();
    await attachedTo(mount, 'vm1', null);

    const writer = await writerOn(mount, 'vm1');
    await attachedTo(mount, 'vm1', writer.pid);
    let before = [0];
    let first: Buffer | null = null;
    // As many more as it takes the writer to get somewhere.
    let count = 0;
    for (; count < SNAPSHOTS || Math.min(...before) <= 1000; ++count) {
      await mount.write(`s${count}`, 'vm1', 'snapshot');
      const cut = await readFile(mount.control('vm1', 'at', `s${count}`));
      first ??= cut;
      const last = checkCut(cut, SHAPE);
      t.true(
        last.every((number, thread) => number >= (before[thread] ?? 0)),
        'a later snapshot holds no less',
      );
      before = last;
      for (let at = 0; at < SIZE; at += PAGE) {
        const from = at < cutSize(SHAPE) ? at + RECORD_END : at;
        const rest = cut.subarray(from, at + PAGE);
        if (!rest.equals(Buffer.alloc(rest.length, baseByte(Math.floor(at / BLOCK))))) {
          t.fail(`snapshot s${count}: what the base holds at ${at} has changed`);
        }
      }
    }
    t.true(
      first?.equals(await readFile(mount.control('vm1', 'at', 's0'))),
      'a frozen layer never changes',
    );
    const report = await monitorReport(mount, 'vm1');
    t.is(report.liveSnapshots, count);
    t.true((report.faults.copyOnWrite?.count ?? 0) > count);
    await writer.end('SIGKILL');
    await attachedTo(mount, 'vm1', null);
    const rest = checkCut(await readFile(mount.file('vm1')), SHAPE);
    t.true(
      rest.every((number, thread) => number >= (before[thread] ?? 0)),
      'a killed process loses nothing',
    );
  },
);

test.serial('one snapshot of two images of two processes is one cut across both', async (t) => {
  const mount = await mountedImages(t, { vm1: SIZE, vm2: SIZE });
  const tool = await program('map-tool', mount.scratch);
  const one = await monitored(t, tool, [mount.file('vm1')]);
  const two = await monitored(t, tool, [mount.file('vm2')]);
  // vm2 gets each number only when vm1 has it: in a cut, vm1 has the number of vm2, or the next
  // one.
  let writing = true;
  const writer = (async () => {
    for (let i = 1; writing; i = (i % 200) + 1) {
      await one.ask(`write 4096 1 ${i}`);
      await two.ask(`write 4096 1 ${i}`);
    }
  })();
  for (let i = 0; i < 20; ++i) {
    await mount.write(`cut${i} vm1 vm2`, 'snapshot');
    const [a = 0, b = 0] = await Promise.all(
      ['vm1', 'vm2'].map(
        async (name) => (await readFile(mount.control(name, 'at', `cut${i}`)))[4096],
      ),
    );
    t.true(a === b || a === (b % 200) + 1, `vm1 has ${a}, vm2 has ${b}`);
  }
  writing = false;
  await writer;
});

test.serial('one snapshot of two images of one process is one cut across both', async (t) => {
  const shape = { threads: 4, pages: 60 };
  const half = cutSize(shape) / 2;
  const mount = await mountedImages(t, { vm1: half, vm2: half });
  const words = [mount.file('vm1'), String(shape.threads), String(shape.pages), mount.file('vm2')];
  const writer = await monitored(t, await program('cut-writer', mount.scratch), words);
  let before = shape.threads;
  for (let i = 0; i < 15 || before <= 15 * shape.pages; ++i) {
    await mount.write(`cut${i} vm1 vm2`, 'snapshot');
    const halves = await Promise.all(
      ['vm1', 'vm2'].map((name) => readFile(mount.control(name, 'at', `cut${i}`))),
    );
    const written = checkCut(Buffer.concat(halves), shape).reduce((sum, number) => sum + number);
    t.true(written >= before, `${written} writes after ${before}`);
    before = written;
  }
  await writer.end('SIGKILL');
});

test.serial(
  'random steps: the mapping, the flat file, the snapshots and a model agree',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const mount = await imagesFor(t, {});
    await imageOnBase(mount, 'vm1', SIZE, baseByte);
    await mount.mount();
    const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    const model = Buffer.alloc(SIZE);
    for (let block = 0; block < SIZE / BLOCK; ++block)
      model.fill(baseByte(block), block * BLOCK, (block + 1) * BLOCK);
    const snapshots = new Map<string, Buffer>();
    const dump = path.join(mount.scratch, 'dump');
    for (let step = 0; step < STEPS; ++step) {
      const offset = random.below(SIZE);
      const length = Math.min(
        SIZE - offset,
        1 + random.below(random.chance(0.2) ? 4 * BLOCK : 3 * PAGE),
      );
      switch (
        random.weighted({
          write: 20,
          punch: 3,
          sync: 3,
          snapshot: 3,
          delete: 1,
          rename: 1,
          compare: 2,
        })
      ) {
        case 'write': {
          const value = 1 + random.below(255);
          t.is(await tool.ask(`write ${offset} ${length} ${value}`), 'ok');
          model.fill(value, offset, offset + length);
          break;
        }
        case 'punch':
          t.is(await tool.ask(`punch ${offset} ${length}`), 'ok');
          model.fill(0, offset, offset + length);
          break;
        case 'sync':
          t.is(await tool.ask('sync'), 'ok');
          break;
        case 'snapshot':
          await mount.write(`s${step}`, 'vm1', 'snapshot');
          snapshots.set(`s${step}`, Buffer.from(model));
          break;
        case 'delete': {
          const name = [...snapshots.keys()][random.below(snapshots.size)];
          if (name === undefined) break;
          await mount.write(name, 'vm1', 'delete');
          snapshots.delete(name);
          break;
        }
        case 'rename': {
          const [name, bytes] = [...snapshots][random.below(snapshots.size)] ?? [];
          if (name === undefined || bytes === undefined) break;
          await mount.write(`${name} r${step}`, 'vm1', 'rename');
          snapshots.delete(name);
          snapshots.set(`r${step}`, bytes);
          break;
        }
        case 'compare':
          t.is(await tool.ask(`dump ${dump}`), 'ok');
          t.true(
            model.equals(await readFile(dump)),
            `seed ${random.seed}, step ${step}: the mapping`,
          );
          t.true(
            model.equals(await readFile(mount.file('vm1'))),
            `seed ${random.seed}, step ${step}: the flat file`,
          );
      }
    }
    for (const [name, bytes] of snapshots) {
      t.true(
        bytes.equals(await readFile(mount.control('vm1', 'at', name))),
        `seed ${random.seed}: snapshot ${name}`,
      );
    }
    await tool.end();
    await attachedTo(mount, 'vm1', null);
    t.true(model.equals(await readFile(mount.file('vm1'))), `seed ${random.seed}: after the end`);
  },
);

test.serial(
  'a guest with many threads is not frozen while each of them is looked at',
  async (t) => {
    const mount = await imagesFor(t, {});
    await Image.create(mount.image('vm1'), { size: SIZE });
    await mount.mount();
    const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await tool.ask('write 0 4096 1'), 'ok');
    t.is(await tool.ask('threads 500'), 'ok');
    const began = performance.now();
    await Promise.all((await threadsOf(tool.pid)).map((thread) => stateOf(tool.pid, thread)));
    const look = performance.now() - began;
    const freezes: number[] = [];
    while (freezes.length < 5) {
      await mount.write(`s${freezes.length}`, 'vm1', 'snapshot');
      await eventually(
        async () => (await monitorReport(mount, 'vm1')).liveSnapshots === freezes.length + 1,
      );
      freezes.push(((await monitorReport(mount, 'vm1')).lastFreezeNs ?? Infinity) / 1e6);
    }
    t.log(`frozen for ${freezes.join(', ')} ms; one look at all threads takes ${look} ms`);
    t.true(Math.min(...freezes) < look / 2);
    await tool.end();
  },
);
