/**
 * Threads that do at random what programs do to a mapping (test/programs/random-mapper.c), snapshots, and deaths: what they stored is
 * there, each snapshot is of one moment, and stays as it is. Nobody waits for ever.
 */
import { execFile } from 'node:child_process';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { checkImage, Image } from '../../src/engine/index.js';
import { attachedTo, environmentOf, monitorPrefix } from '../helpers/monitored.js';
import { imagesFor, MiB } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const SIZE = 8 * MiB;
const SECONDS = Number(process.env.PCOW_RANDOM_SECONDS ?? 60);

/** Of scripts/mapper: the same program with a monitor in it that a sanitizer watches. */
const SANITIZED = process.env.PCOW_RANDOM_MAPPER;

/** A run over a new image. Ends after some seconds, when something was done, or when a thread has filled its log. */
async function epoch(t: ExecutionContext<unknown>, random: Random, seconds: number): Promise<void> {
  const mount = await imagesFor(t, {});
  const blockSize = random.pick([4096, 65536, 65536, 2 * MiB]);
  await Image.create(mount.image('base'), { size: SIZE, blockSize });
  const base = await Image.open(mount.image('base'), { write: true });
  await base.write(Buffer.alloc(SIZE, 0x55), 0);
  await base.snapshot('s');
  await base.close();
  await Image.create(mount.image('vm1'), { base: { path: mount.image('base'), snapshot: 's' } });
  await mount.mount();

  const memory = await scratchDirectory(t, '/dev/shm');
  const model = path.join(memory, 'model');
  const mapper = await program('random-mapper', mount.scratch);
  const checker = await program('random-checker', mount.scratch);
  const settings: Record<string, string> = random.chance(0.5) ? { PCOW_MAPPING_BUDGET: '100' } : {};
  const words = SANITIZED ? ['env', ...environmentOf(settings), SANITIZED] : [...monitorPrefix(settings), mapper];
  const [command = '', ...prefix] = [...words, model, mount.file('vm1'), mount.scratch];

  let snapshots = 0;
  let steps = 0;
  const end = Date.now() + seconds * 1000;
  while (Date.now() < end || steps === 0) {
    const worker = Conversation.begin(t, command, ...prefix, `${random.below(1e9)}`);
    const taker = Conversation.begin(
      t,
      checker,
      ...[model, mount.point, 'vm1', `${random.below(1e9)}`, `${snapshots}`],
    );
    await attachedTo(mount, 'vm1', worker.pid);
    await Promise.race([sleep(500 + random.below(10_000)), worker.closed, taker.closed]);
    const dies = random.chance(0.5);
    if (dies) await worker.end('SIGKILL');
    const [answer, taken] = await Promise.all([dies ? 'ok' : worker.endWithAnswer(), taker.endWithAnswer()]);
    t.is(answer, 'ok');
    snapshots += Number(/^(\d+) snapshots$/.exec(taken)?.[1]);
    t.false(Number.isNaN(snapshots), taken);
    await attachedTo(mount, 'vm1', null);
    const { stdout } = await run(checker, [model, mount.file('vm1')]);
    steps = Number(stdout);
    for (const name of await readdir(mount.control('vm1', 'at'))) await mount.write(name, 'vm1', 'delete');
  }
  await mount.unmount();
  t.deepEqual((await checkImage(mount.image('vm1'))).findings, []);
  t.log(`${steps} steps, ${snapshots} snapshots, blocks of ${blockSize} bytes`);
}

test.serial('whatever a program does to its mapping, nothing is lost, and no snapshot changes', async (t) => {
  t.timeout((SECONDS + 300) * 1000);
  const random = new Random(seedFromEnvironment());
  t.log(`PCOW_SEED=${random.seed}`);
  const end = Date.now() + SECONDS * 1000;
  while (Date.now() < end) await epoch(t, random, Math.min(30, (end - Date.now()) / 1000));
});
