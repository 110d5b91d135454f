/**
 * The mount is killed while files are written: data that was written by write(2), or msynced, is
 * still there in the next mount.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { effort } from '../helpers/effort.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';

const PAGE = 4096;
const PAGES = 300;
const ROUNDS = effort(4, 50, 'PCOW_KILL_ROUNDS');

/**
 * Runs the writer until the mount is killed. Returns the last number that it reported as written.
 */
async function writeAndKill(
  mount: TestMount,
  writer: string,
  way: string,
  first: number,
  after: number,
): Promise<number> {
  const child = spawn(writer, [mount.file('vm1'), way, String(PAGES), String(first)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  mount.t.teardown(() => child.kill('SIGKILL'));
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
  await once(child.stdout, 'data');
  const ended = once(child, 'close');
  await sleep(after);
  await mount.kill();
  await ended;
  const complete = said.slice(0, said.lastIndexOf('\n')).split('\n');
  return Number(complete.at(-1));
}

/**
 * Every page must have the last number up to `last` that was written to it; the one after `last`
 * may be there as well.
 */
function checkNumbers(bytes: Buffer, last: number): void {
  for (let page = 0; page < PAGES; ++page) {
    const found = Number(bytes.readBigUInt64LE(page * PAGE));
    let wanted = last;
    while (wanted > 0 && (wanted * 37) % PAGES !== page) --wanted;
    if (found !== wanted && !(found === last + 1 && ((last + 1) * 37) % PAGES === page)) {
      throw new Error(`page ${page} holds ${found} in place of ${wanted}; ${last} was the last`);
    }
  }
}

for (const way of ['write', 'msync']) {
  test.serial(`kill -9 of the mount at random moments under ${way}`, async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const mount = await imagesFor(t, { vm1: 2 * MiB });
    const writer = await program('numbered-writes', mount.scratch);
    let last = 0;
    for (let round = 0; round < ROUNDS; ++round) {
      await mount.mount();
      // In some rounds the mount dies in the middle of a snapshot, or soon after one.
      const snapshot = random.chance(0.5) ? `s${round}` : null;
      const after = random.below(300);
      const killed = writeAndKill(mount, writer, way, last + 1, after);
      if (snapshot !== null) {
        await sleep(random.below(after + 50));
        mount.write(snapshot, 'vm1', 'snapshot').catch(() => undefined);
      }
      last = await killed;
      await mount.mount();
      const bytes = await readFile(mount.file('vm1'));
      t.notThrows(() => {
        checkNumbers(bytes, last);
      }, `seed ${random.seed}, round ${round}`);
      const { state } = await mount.status('vm1');
      t.is(state, 'ok');
      // The last number may or may not be there: find out which.
      if (Number(bytes.readBigUInt64LE((((last + 1) * 37) % PAGES) * PAGE)) === last + 1) last += 1;
      await mount.unmount();
    }
    t.log(`${last} numbers`);
  });
}
