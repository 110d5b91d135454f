/**
 * Guests that share the memory of their bases come and go, and are killed. So are their mounts,
 * each with a store of its own, or with none. Every guest sees its own bytes: what it has stored,
 * and its base's around that (test/programs/base-guest.c). The stores have room for one base of the
 * two, so that one makes room for the other.
 *
 *   PCOW_STORM_ROUNDS=1000 (npm run storm -- 1000 sharing)
 */
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { checkImage, Image } from '../../src/engine/index.js';
import type { StoreFigures } from '../../src/engine/attach-server.js';
import { effort } from '../helpers/effort.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { type Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';

const ROUNDS = effort(12, 200, 'PCOW_STORM_ROUNDS');
const LONGEST_PAUSE_MS = 300;
const BASES = 2;
const GUESTS = 4;
const SIZE = 12 * MiB;
const PAGE = 4096;
const MOST_SNAPSHOTS = 3;

/** As base-guest.c expects it. */
async function makeBase(mount: TestMount, number: number): Promise<void> {
  const file = mount.image(`base${number}`);
  await Image.create(file, { size: SIZE });
  const image = await Image.open(file, { write: true });
  const words = new BigUint64Array(PAGE / 8);
  for (let page = 0; page < SIZE / PAGE; ++page) {
    if (page % 3 === 2) continue;
    const first = (BigInt(number) << 56n) | (BigInt(page) << 16n);
    for (let word = 0; word < words.length; ++word) words[word] = first | BigInt(word);
    await image.write(new Uint8Array(words.buffer), page * PAGE);
  }
  await image.snapshot('s');
  await image.close();
}

class Guest {
  #process: Conversation | null = null;
  #snapshots = 0;

  constructor(
    readonly mount: TestMount,
    readonly name: string,
    readonly base: number,
    readonly file: string,
  ) {}

  get pid(): number | null {
    return this.#process?.pid ?? null;
  }

  async begin(random: Random): Promise<void> {
    const { mount, name, base } = this;
    const words = [path.join(mount.scratch, `${name}.model`), mount.file(name)];
    words.push(`${base}`, `${random.below(1e9)}`);
    this.#process = await monitored(mount.t, this.file, words);
    mount.t.is(this.#process.greeting, 'mapped');
  }

  async end(): Promise<void> {
    const process = this.#process;
    this.#process = null;
    if (process !== null) this.mount.t.is(await process.endWithAnswer(), 'ok', this.name);
    await attachedTo(this.mount, this.name, null);
  }

  async kill(): Promise<void> {
    await this.#process?.end('SIGKILL');
    this.#process = null;
    await attachedTo(this.mount, this.name, null);
  }

  async snapshot(): Promise<void> {
    await this.mount.write(`s${(this.#snapshots += 1)}`, this.name, 'snapshot');
    const names = await readdir(this.mount.control(this.name, 'at'));
    if (names.length > MOST_SNAPSHOTS) await this.mount.write(names[0]!, this.name, 'delete');
  }
}

test.serial(
  'guests of two bases come and go, and their mounts are killed: each sees its own bytes',
  async (t) => {
    t.timeout(60_000 + ROUNDS * 60_000);
    const random = new Random(seedFromEnvironment());
    t.log(`PCOW_SEED=${random.seed}, ${ROUNDS} rounds`);
    const mount = await imagesFor(t, {});
    const guests = await makeGuests(mount);
    const done: Record<string, number> = {};
    let given = 0;
    let refused = 0;
    await mount.mount('--clean-store', '64M');
    for (let round = 0; round < ROUNDS; ++round) {
      const guest = random.pick(guests);
      const what =
        guest.pid === null ? 'begin' : random.weighted({ snapshot: 2, end: 2, kill: 2, mount: 1 });
      done[what] = (done[what] ?? 0) + 1;
      if (what === 'begin') await guest.begin(random);
      else if (what === 'snapshot') await guest.snapshot();
      else if (what === 'end') await guest.end();
      else if (what === 'kill') await guest.kill();
      else {
        const before = await storeOf(mount);
        given += before?.given ?? 0;
        refused += before?.refused ?? 0;
        await mount.kill();
        await sleep(random.below(LONGEST_PAUSE_MS));
        const size = random.pick(['0', '64M', '64M', '128M']);
        await mount.mount('--clean-store', size);
        for (const one of guests) await attachedTo(mount, one.name, one.pid);
      }
      await sleep(random.below(LONGEST_PAUSE_MS));
    }
    for (const guest of guests) await guest.end();
    const last = await storeOf(mount);
    await mount.unmount();
    for (const { name } of guests)
      t.deepEqual((await checkImage(mount.image(name))).findings, [], name);
    given += last?.given ?? 0;
    refused += last?.refused ?? 0;
    t.log({ ...done, given, refused });
    t.true(given > 0, 'no guest was given shared memory');
  },
);

async function makeGuests(mount: TestMount): Promise<Guest[]> {
  const file = await program('base-guest', mount.scratch);
  for (let number = 0; number < BASES; ++number) await makeBase(mount, number);
  const guests = Array.from(
    { length: GUESTS },
    (_, number) => new Guest(mount, `guest${number}`, number % BASES, file),
  );
  for (const { name, base } of guests) {
    await Image.create(mount.image(name), {
      base: { path: mount.image(`base${base}`), snapshot: 's' },
    });
  }
  return guests;
}

async function storeOf(mount: TestMount): Promise<StoreFigures | null> {
  const status = JSON.parse(await readFile(path.join(mount.point, '.pcow/status'), 'utf8')) as {
    cleanStore: StoreFigures | null;
  };
  return status.cleanStore;
}
