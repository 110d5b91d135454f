/** kill -9 of the process that has an image mapped, and of the mount, at random moments: nothing is lost, nobody is stuck. */
import { open, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { attachedTo, imageOnBase, monitored } from '../helpers/monitored.js';
import { type Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';

const PAGE = 4096;
const PAGES = 1500;
const STEP = 37;
const ROUNDS = Number(process.env.PCOW_KILL_ROUNDS ?? 25);
const MOUNT_ROUNDS = Number(process.env.PCOW_KILL_ROUNDS ?? 10);

/** stored-numbers.c on an image over a base. */
class Writer {
  #process: Conversation | null = null;

  private constructor(
    readonly mount: TestMount,
    readonly file: string,
    readonly progress: string,
    readonly settings: Record<string, string>,
  ) {}

  static async prepare(t: ExecutionContext<unknown>, settings: Record<string, string>): Promise<Writer> {
    const mount = await imagesFor(t, {});
    // A page's number must be 0 before its first write: where the base holds something, it is not in the first bytes.
    await imageOnBase(mount, 'vm1', 8 * MiB, (block) => (block % 3 === 0 ? 0 : 1));
    const image = await Image.open(mount.image('vm1'), { write: true });
    for (let page = 0; page < PAGES; page += 1) await image.write(Buffer.alloc(8), page * PAGE);
    await image.snapshot('zeros');
    await image.close();
    const progress = path.join(mount.scratch, 'progress');
    await writeFile(progress, Buffer.alloc(PAGE));
    return new Writer(mount, await program('stored-numbers', mount.scratch), progress, settings);
  }

  get process(): Conversation {
    if (!this.#process) throw new Error('it does not run');
    return this.#process;
  }

  async start(first: number): Promise<void> {
    const words = [this.mount.file('vm1'), this.progress, String(PAGES), String(first)];
    this.#process = await monitored(this.mount.t, this.file, words, this.settings);
  }

  async stored(): Promise<number> {
    return Number((await readFile(this.progress)).readBigUInt64LE(0));
  }

  async flushed(): Promise<number> {
    return Number((await readFile(this.progress)).readBigUInt64LE(8));
  }

  /** Waits for a flush that began after now. */
  async flushesAgain(): Promise<void> {
    const wanted = (await this.stored()) + 32;
    for (let tries = 0; tries < 500; ++tries) {
      if ((await this.flushed()) >= wanted) return;
      await sleep(20);
    }
    throw new Error('the process does not flush any more');
  }
}

/**
 * Every page must hold the last number up to `last` that went there; the one after may be there as well. Returns the last number
 * that is there.
 */
function checkNumbers(bytes: Buffer, last: number): number {
  const wanted = new Map<number, number>();
  for (let number = Math.max(1, last - PAGES + 1); number <= last; ++number)
    wanted.set((number * STEP) % PAGES, number);
  let newest = last;
  for (let page = 0; page < PAGES; ++page) {
    const found = Number(bytes.readBigUInt64LE(page * PAGE));
    if (found === (wanted.get(page) ?? 0)) continue;
    if (found !== last + 1 || (found * STEP) % PAGES !== page) {
      throw new Error(`page ${page} holds ${found} in place of ${wanted.get(page) ?? 0}; ${last} was the last`);
    }
    newest = found;
  }
  return newest;
}

/** A snapshot holds all numbers up to one of them, which must be in a range. */
function checkSnapshot(bytes: Buffer, from: number, to: number): void {
  let newest = 0;
  for (let page = 0; page < PAGES; ++page) newest = Math.max(newest, Number(bytes.readBigUInt64LE(page * PAGE)));
  if (newest < from || newest > to + 1) throw new Error(`it ends with ${newest}, not between ${from} and ${to}`);
  checkNumbers(bytes, newest);
}

test.serial(
  'kill -9 of the mapping process while it stores, flushes and is snapshotted: all that it stored is there',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    // Few mappings, so that promotions are under way as well.
    const writer = await Writer.prepare(t, { PCOW_MAPPING_BUDGET: '40' });
    const { mount } = writer;
    await mount.mount();
    let last = 0;
    for (let round = 0; round < ROUNDS; ++round) {
      const where = `seed ${random.seed}, round ${round}`;
      await writer.start(last + 1);
      const started = last;
      const life = 20 + random.below(150);
      const name = `s${round}`;
      const snapshot = random.chance(0.7)
        ? sleep(random.below(life + 20)).then(() =>
            mount.write(name, 'vm1', 'snapshot').then(
              () => true,
              () => false,
            ),
          )
        : Promise.resolve(false);
      await sleep(life);
      await writer.process.end('SIGKILL');
      const stored = Math.max(started, await writer.stored());
      t.true((await writer.flushed()) <= stored);
      const made = await snapshot;
      await attachedTo(mount, 'vm1', null);
      last = checkNumbers(await readFile(mount.file('vm1')), stored);
      if (made) {
        t.notThrows(await checkerOf(mount, name, started, last), `${where}: the snapshot`);
        await mount.write(name, 'vm1', 'delete');
      }
      // The mount has the image again: it may be written.
      const file = await open(mount.file('vm1'), 'r+');
      const byte = 1 + (round % 255);
      await file.write(Buffer.of(byte), 0, 1, PAGES * PAGE);
      await file.close();
      t.is((await readFile(mount.file('vm1')))[PAGES * PAGE], byte, where);
    }
    t.true(last > ROUNDS * 10, `it stored ${last} numbers`);
    t.is((await mount.status('vm1')).state, 'ok');
    await mount.unmount();
  },
);

async function checkerOf(mount: TestMount, name: string, from: number, to: number): Promise<() => void> {
  const bytes = await readFile(mount.control('vm1', 'at', name));
  return () => {
    checkSnapshot(bytes, from, to);
  };
}

test.serial(
  'kill -9 of the mount: the process goes on, flushes, and the next mount has its control files again',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const writer = await Writer.prepare(t, {});
    const { mount } = writer;
    await mount.mount();
    await writer.start(1);
    const { pid } = writer.process;
    for (let round = 0; round < MOUNT_ROUNDS; ++round) {
      const where = `seed ${random.seed}, round ${round}`;
      await attachedTo(mount, 'vm1', pid);
      // In some rounds it dies in the middle of a snapshot, or soon after one.
      const late = random.chance(0.6) ? mount.write(`late${round}`, 'vm1', 'snapshot').catch(() => undefined) : null;
      await sleep(random.below(80));
      await mount.kill();
      await late;
      await writer.flushesAgain();
      await mount.mount();
      await attachedTo(mount, 'vm1', pid);
      const before = await writer.stored();
      await mount.write(`s${round}`, 'vm1', 'snapshot');
      t.notThrows(await checkerOf(mount, `s${round}`, before, await writer.stored()), where);
    }
    await writer.process.end('SIGKILL');
    await attachedTo(mount, 'vm1', null);
    const stored = await writer.stored();
    checkNumbers(await readFile(mount.file('vm1')), stored);
    t.is((await mount.status('vm1')).state, 'ok');
  },
);

test.serial('both die, the mount first: the next mount has all that was stored', async (t) => {
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}`);
  const writer = await Writer.prepare(t, {});
  const { mount } = writer;
  let last = 0;
  for (let round = 0; round < 5; ++round) {
    await mount.mount();
    await writer.start(last + 1);
    const snapshot = mount.write(`s${round}`, 'vm1', 'snapshot').catch(() => undefined);
    await sleep(random.below(100));
    await mount.kill();
    await sleep(random.below(50));
    await writer.process.end('SIGKILL');
    await snapshot;
    const stored = Math.max(last, await writer.stored());
    await mount.mount();
    last = checkNumbers(await readFile(mount.file('vm1')), stored);
    t.is((await mount.status('vm1')).state, 'ok');
    await mount.unmount();
  }
});
