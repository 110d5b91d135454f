/**
 * kill -9 of the process that has an image mapped, and of the mount, at random moments: nothing is
 * lost, and no process is stuck.
 */
import { open, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { effort } from '../helpers/effort.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { anyStore, imagesFor, MiB } from '../helpers/mount.js';
import { checkerOf, checkNumbers, NumberWriter, PAGE, PAGES } from '../helpers/number-writer.js';
import { program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';

const ROUNDS = effort(8, 100, 'PCOW_KILL_ROUNDS');
const MOUNT_ROUNDS = effort(4, 50, 'PCOW_KILL_ROUNDS');

test.serial(
  'kill -9 of the mapping process while it stores, flushes and is snapshotted: everything that it stored is kept',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    // Few mappings, so that promotions are in progress as well.
    const writer = await NumberWriter.prepare(t, { PCOW_MAPPING_BUDGET: '40' });
    const { mount } = writer;
    await mount.mount(...anyStore(random));
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
      // The mount has the image again: it can be written.
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

test.serial(
  'kill -9 of the mount: the process continues, flushes, and the next mount has its control files again',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const writer = await NumberWriter.prepare(t, {});
    const { mount } = writer;
    await mount.mount(...anyStore(random));
    await writer.start(1);
    const { pid } = writer.process;
    for (let round = 0; round < MOUNT_ROUNDS; ++round) {
      const where = `seed ${random.seed}, round ${round}`;
      await attachedTo(mount, 'vm1', pid);
      // In some rounds the mount dies in the middle of a snapshot, or soon after one.
      const late = random.chance(0.6)
        ? mount.write(`late${round}`, 'vm1', 'snapshot').catch(() => undefined)
        : null;
      await sleep(random.below(80));
      await mount.kill();
      await late;
      await writer.flushesAgain();
      await mount.mount(...anyStore(random));
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

test.serial(
  'the next mount: a process recognises its own image there, by any descriptor',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    const tool = await program('map-tool', mount.scratch);
    for (const first of ['punch 65536 4096', 'another']) {
      const it = await monitored(t, tool, [mount.file('vm1')]);
      t.is(await it.ask('write 65536 8192 7'), 'ok');
      await mount.kill();
      await mount.mount();
      await attachedTo(mount, 'vm1', it.pid);
      t.is(await it.ask('another'), 'ok', 'by the descriptor of the dead mount');
      t.is(await it.ask('reopen'), 'ok');
      t.is(await it.ask(first), 'ok');
      t.is(await it.ask('punch 65536 4096'), 'ok');
      t.is(await it.ask('another'), 'ok');
      t.is(await it.ask('read 65536'), '0');
      t.is(await it.ask('read 69632'), '7');
      await it.end();
      await attachedTo(mount, 'vm1', null);
    }
  },
);

test.serial(
  'the next mount: a process opens its own image there before it is attached again',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    const it = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    for (let value = 1; value <= 4; ++value) {
      t.is(await it.ask(`write 65536 8192 ${value}`), 'ok');
      await mount.kill();
      const opened = it.ask('reopen-next');
      await mount.mount();
      t.is(await opened, 'ok');
      await attachedTo(mount, 'vm1', it.pid);
      t.is(await it.ask('another'), 'ok');
      t.is(await it.ask('punch 65536 4096'), 'ok');
      t.is(await it.ask('read 65536'), '0');
      t.is(await it.ask('read 69632'), `${value}`);
    }
    await it.end();
    await attachedTo(mount, 'vm1', null);
  },
);

test.serial('the next mount: commands work before the process is attached again', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const it = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
  const commands: [text: string, control: string][] = [
    ['a', 'snapshot'],
    ['b', 'snapshot'],
    ['a c', 'rename'],
    ['b', 'delete'],
    ['c1', 'clone'],
    ['c2 c', 'clone'],
  ];
  for (const [text, control] of commands) {
    await mount.kill();
    await mount.mount();
    await t.notThrowsAsync(mount.write(text, 'vm1', control), `${control}: ${text}`);
    await attachedTo(mount, 'vm1', it.pid);
  }
  t.is(await it.ask('write 0 4096 7'), 'ok');
  await it.end();
});

test.serial(
  'the next mount: a process that has another root in the meantime is attached again',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    const it = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await it.ask('write 0 4096 7'), 'ok');
    t.is(await it.ask(`chroot ${await scratchDirectory(t)}`), 'ok');
    await mount.kill();
    await mount.mount();
    await attachedTo(mount, 'vm1', it.pid);
    await mount.write('s', 'vm1', 'snapshot');
    t.is(await it.ask('write 0 4096 8'), 'ok');
    t.is((await readFile(mount.control('vm1', 'at', 's')))[0], 7);
    await it.end();
    await attachedTo(mount, 'vm1', null);
    t.is((await readFile(mount.file('vm1')))[0], 8);
  },
);

test.serial(
  'both die, the mount first: the next mount has everything that was stored',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const writer = await NumberWriter.prepare(t, {});
    const { mount } = writer;
    let last = 0;
    for (let round = 0; round < 5; ++round) {
      await mount.mount(...anyStore(random));
      await writer.start(last + 1);
      const snapshot = mount.write(`s${round}`, 'vm1', 'snapshot').catch(() => undefined);
      await sleep(random.below(100));
      await mount.kill();
      await sleep(random.below(50));
      await writer.process.end('SIGKILL');
      await snapshot;
      const stored = Math.max(last, await writer.stored());
      await mount.mount(...anyStore(random));
      last = checkNumbers(await readFile(mount.file('vm1')), stored);
      t.is((await mount.status('vm1')).state, 'ok');
      await mount.unmount();
    }
  },
);
