/**
 * The kernel's page cache of a flat file, and its mappings without the monitor, beside a process
 * that has the image attached.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import test, { type ExecutionContext } from 'ava';

import { attachedTo, monitored } from '../helpers/monitored.js';
import { mountedImages, MiB, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

/**
 * A process that has had the flat file open since before, and never attaches
 * (test/programs/fake-monitor.c).
 */
async function plain(t: ExecutionContext<unknown>, mount: TestMount): Promise<Conversation> {
  return Conversation.start(t, await program('fake-monitor', mount.scratch), mount.file('vm1'));
}

async function eventually(it: Conversation, question: string, answer: string): Promise<void> {
  while ((await it.ask(question)) !== answer) await sleep(50);
}

test.serial(
  'an earlier descriptor soon reads what the attached process stores, and exactly that when it has ended',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const tool = await program('map-tool', mount.scratch);
    const old = await plain(t, mount);
    t.is(await old.ask('write 0 1'), 'ok');
    t.is(await old.ask('read 0'), '1');
    const guest = await monitored(t, tool, [mount.file('vm1')]);
    t.is(await guest.ask('write 0 4096 2'), 'ok');
    await eventually(old, 'read 0', '2');
    t.is(await guest.ask('write 0 4096 3'), 'ok');
    await eventually(old, 'read 0', '3');
    const { pid } = guest;
    await attachedTo(mount, 'vm1', pid);
    const during = await plainReader(t, mount);
    for (let value = 10; value < 20; ++value) {
      t.is(await guest.ask(`write 0 4096 ${value}`), 'ok');
      t.is(
        await during.ask('read 0'),
        String(value),
        'a descriptor from during the attachment is never behind',
      );
    }
    await guest.end('SIGKILL');
    t.is(await old.ask('fsync'), 'ok', 'waits until the mount has the image');
    t.is(await old.ask('read 0'), '19');
    t.is(await old.ask('map-store 100 42'), 'ok', 'one byte of a page');
    t.is(await during.ask('read 0'), '19');
    t.is(await during.ask('read 100'), '42');
    t.is(await during.ask('read 200'), '19');
  },
);

async function plainReader(t: ExecutionContext<unknown>, mount: TestMount): Promise<Conversation> {
  return Conversation.start(
    t,
    await program('fake-monitor', mount.scratch),
    `${mount.file('vm1')}:r`,
  );
}

test.serial(
  'a mapping that was made beside an attached process overwrites nothing that the process has stored',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const tool = await program('map-tool', mount.scratch);
    const late = await plain(t, mount);
    t.is(await late.ask('read 0'), '0');
    const guest = await monitored(t, tool, [mount.file('vm1')]);
    t.not(await late.ask('map-store 100 65'), 'ok', 'it hears that its store is lost');
    t.is(await guest.ask('write 0 40960 153'), 'ok');
    await t.throwsAsync(
      Conversation.start(t, tool, mount.file('vm1')),
      { message: /has ended/ },
      'nobody opens it anew',
    );
    await guest.end();
    t.is(await late.ask('fsync'), 'ok');
    t.is(await late.ask('map-store 101 66'), 'ok', 'the image is the mount’s again');
    const reader = await plainReader(t, mount);
    const bytes = await Promise.all([0, 100, 101].map((offset) => reader.ask(`read ${offset}`)));
    t.deepEqual(bytes, ['153', '153', '66']);
  },
);
