/**
 * kill -9 storms: the mount, a process that has an image mapped under the monitor, a QEMU without a
 * guest (guest.test.ts has QEMUs with one), and commands, in all combinations, at random moments.
 * Whatever died, the next round begins without human help: stale mounts, sockets, locks and
 * half-made images are no obstacle, `pcow check` finds no damage, and nothing that was stored, or
 * is in a snapshot, is lost.
 *
 *   PCOW_STORM_ROUNDS=1000 (npm run storm -- 1000)
 */
import { randomBytes } from 'node:crypto';
import { open, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { checkImage, Image } from '../../src/engine/index.js';
import { effort } from '../helpers/effort.js';
import { attachedTo, imageOnBase, monitorPrefix } from '../helpers/monitored.js';
import { anyStore, MiB, type TestMount } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';
import { checkerOf, checkNumbers, NumberWriter } from '../helpers/number-writer.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { ended, shuffled, started } from './deaths.js';

const ROUNDS = effort(3, 50, 'PCOW_STORM_ROUNDS');
const LONGEST_LIFE_MS = 700;
const MOST_SNAPSHOTS = 4;
const DISK = 8 * MiB;

test.serial('kill -9 of everything, in all combinations', async (t) => {
  t.timeout(60_000 + ROUNDS * 60_000);
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}, ${ROUNDS} rounds`);
  const writer = await NumberWriter.prepare(t, { PCOW_MAPPING_BUDGET: '60' });
  const { mount } = writer;
  await Image.create(mount.image('disk'), { size: DISK });
  const work = await Work.prepare(mount);
  const killed = { mount: 0, writer: 0, qemu: 0, command: 0 };
  let mounted = false;
  let last = 0;

  for (let round = 0; round < ROUNDS; ++round) {
    const where = `seed ${random.seed}, round ${round}`;
    const atRest = !mounted && random.chance(0.3);
    if (!mounted && !atRest) await mount.mount(...anyStore(random));
    mounted ||= !atRest;
    const runs = { writer: mounted && random.chance(0.8), qemu: mounted && random.chance(0.3) };
    if (runs.writer) await writer.start(last + 1);
    const qemu = runs.qemu ? started(t, [...monitorPrefix(), ...qemuOn(mount.file('disk'))]) : null;
    const commands = Array.from({ length: 1 + random.below(2) }, () =>
      started(t, [process.execPath, pcowProgram, ...aCommand(mount, random, round)]),
    );

    await sleep(random.below(LONGEST_LIFE_MS));
    const victims = shuffled(random, [
      ...(runs.writer && random.chance(0.6) ? (['writer'] as const) : []),
      ...(qemu && random.chance(0.6) ? (['qemu'] as const) : []),
      ...(random.chance(0.7) ? (['command'] as const) : []),
      ...(mounted && random.chance(0.5) ? (['mount'] as const) : []),
    ]);
    let writes = runs.writer;
    for (const victim of victims) {
      killed[victim] += 1;
      if (victim === 'mount') {
        await mount.kill();
        mounted = false;
      } else if (victim === 'writer') {
        await writer.process.end('SIGKILL');
        writes = false;
      } else if (victim === 'qemu') {
        await ended(qemu, 'SIGKILL');
      } else {
        await Promise.all(commands.map((command) => ended(command, 'SIGKILL')));
      }
      if (random.chance(0.5)) await sleep(random.below(50));
    }

    await Promise.all(commands.map((command) => ended(command)));
    if (!mounted) await mount.mount(...anyStore(random));
    mounted = true;
    if (writes) {
      // It has survived the others: it flushes, with this mount or without the last one, and its
      // snapshots work again.
      await writer.flushesAgain();
      await attachedTo(mount, 'vm1', writer.process.pid);
      await writer.process.end('SIGKILL');
    }
    await ended(qemu, 'SIGKILL');
    await attachedTo(mount, 'vm1', null);
    await attachedTo(mount, 'disk', null);

    const stored = Math.max(last, await writer.stored());
    last = checkNumbers(await readFile(mount.file('vm1')), stored);
    const snapshots = (await readdir(mount.control('vm1', 'at'))).filter(
      (name) => name !== 'zeros',
    );
    for (const name of snapshots)
      t.notThrows(await checkerOf(mount, name, 0, last), `${where}: snapshot ${name}`);
    for (const name of snapshots.slice(MOST_SNAPSHOTS)) await mount.write(name, 'vm1', 'delete');
    t.true(await work.isRight(), `${where}: a command has changed what an image holds`);
    if (random.chance(0.3)) await work.write(random);
    for (const name of await imagesOf(mount)) {
      t.is((await mount.status(name)).state, 'ok', `${where}: ${name}`);
      const { damages, findings } = await checkImage(mount.image(name));
      t.is(damages, 0, `${where}: ${name}: ${JSON.stringify(findings)}`);
    }
    if (random.chance(0.3)) {
      await mount.unmount();
      mounted = false;
      // No lock is left.
      for (const name of ['vm1', 'disk', 'work', 'base1', 'base2'])
        await (await Image.open(mount.image(name), { write: true })).close();
    }
  }
  t.log(`killed: ${JSON.stringify(killed)}; ${last} numbers stored`);
});

/** An image on which commands work: whatever they do to its layers and bases, its content stays. */
class Work {
  #content = Buffer.alloc(DISK);

  private constructor(readonly mount: TestMount) {}

  static async prepare(mount: TestMount): Promise<Work> {
    for (const [number, name] of ['base1', 'base2'].entries()) {
      await imageOnBase(mount, name, DISK, (block) =>
        block % 3 === number ? 0 : (block + number) % 250,
      );
      const image = await Image.open(mount.image(name), { write: true });
      await image.snapshot('s');
      await image.close();
    }
    await Image.create(mount.image('work'), {
      base: { path: mount.image('base1'), snapshot: 's' },
    });
    const work = new Work(mount);
    const image = await Image.open(mount.image('work'));
    await image.read(work.#content, 0);
    await image.close();
    return work;
  }

  async isRight(): Promise<boolean> {
    return this.#content.equals(await readFile(this.mount.file('work')));
  }

  async write(random: Random): Promise<void> {
    const file = await open(this.mount.file('work'), 'r+');
    try {
      for (let count = 0; count < 20; ++count) {
        const bytes = randomBytes(1 + random.below(100_000));
        const offset = random.below(DISK - bytes.length);
        bytes.copy(this.#content, offset);
        await file.write(bytes, 0, bytes.length, offset);
      }
    } finally {
      await file.close();
    }
  }
}

/** A QEMU that maps the file and runs no guest. */
function qemuOn(file: string): string[] {
  const memory = `memory-backend-file,id=m,share=on,prealloc=on,mem-path=${file},size=${DISK}`;
  return [
    'qemu-system-x86_64',
    '-machine',
    'none',
    '-nodefaults',
    '-display',
    'none',
    '-S',
    '-object',
    memory,
  ];
}

/** Through the mount if the image is given by its flat file, otherwise directly. */
function aCommand(mount: TestMount, random: Random, round: number): string[] {
  const place = (name: string): string =>
    random.chance(0.5) ? mount.file(name) : mount.image(name);
  const commands = {
    snapshot: ['snapshot', `${place('vm1')}@s${round}`],
    'snapshot of two': [
      'snapshot',
      `${mount.file('vm1')}@s${round}`,
      `${mount.file('disk')}@s${round}`,
    ],
    delete: ['delete', `${place('vm1')}@s${round - 1}`],
    clone: ['clone', place('vm1'), place(`clone${random.below(3)}`)],
    create: ['create', '--force', mount.image(`made${random.below(3)}`), '1M'],
    list: ['list', mount.point],
    info: ['info', place('vm1')],
    convert: ['convert', '--force', mount.image('base1'), mount.image(`made${random.below(3)}`)],
    'convert to raw': [
      'convert',
      '--force',
      '-O',
      'raw',
      mount.image('base2'),
      path.join(mount.scratch, 'raw'),
    ],
    rebase: ['rebase', place('work'), '--base', `${place(random.pick(['base1', 'base2']))}@s`],
    flatten: ['flatten', place('work')],
    commit: ['commit', place('work')],
    compact: ['compact', place('work')],
    resize: ['resize', place('disk'), '+4K'],
    rename: ['rename', place(`clone${random.below(3)}`), 'renamed'],
    remove: ['rm', place(random.pick(['renamed', 'clone0', 'clone1', 'clone2']))],
  };
  return commands[
    random.weighted({
      ...{
        snapshot: 4,
        'snapshot of two': 2,
        delete: 4,
        clone: 1,
        create: 1,
        list: 1,
        info: 1,
        convert: 1,
      },
      ...{
        'convert to raw': 1,
        rebase: 4,
        flatten: 1,
        commit: 3,
        compact: 2,
        resize: 1,
        rename: 1,
        remove: 1,
      },
    })
  ];
}

async function imagesOf(mount: TestMount): Promise<string[]> {
  return (await readdir(mount.point)).filter((name) => !name.startsWith('.'));
}
