/**
 * Attaching with the real monitor: the effects of control files on a process that has an image in
 * its memory, and of the deaths of both.
 */
import { open, readdir, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import test, { type ExecutionContext } from 'ava';

import { mountedImages, MiB, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

const run = promisify(execFile);
const library = fileURLToPath(
  new URL('../../../native/build/Release/libpcow-monitor.so', import.meta.url),
);

/** map-tool, which has the flat file in its memory through the monitor. */
async function mapper(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  name: string,
): Promise<Conversation> {
  const tool = await program('map-tool', mount.scratch);
  return Conversation.start(t, 'env', `LD_PRELOAD=${library}`, tool, mount.file(name));
}

async function byteAt(file: string, offset: number): Promise<number | undefined> {
  const handle = await open(file);
  try {
    const byte = Buffer.alloc(1);
    await handle.read(byte, 0, 1, offset);
    return byte[0];
  } finally {
    await handle.close();
  }
}

async function attachedPid(mount: TestMount, name: string): Promise<number | null> {
  const status = JSON.parse(await readFile(mount.control(name, 'status'), 'utf8')) as {
    attached: { pid: number } | null;
  };
  return status.attached?.pid ?? null;
}

test.serial(
  'snapshot, clone, rename and delete while a process has the image in its memory',
  async (t) => {
    const mount = await mountedImages(t, { vm1: 4 * MiB });
    const tool = await mapper(t, mount, 'vm1');
    t.is(await attachedPid(mount, 'vm1'), tool.pid);
    for (const [round, name] of ['a', 'b', 'c'].entries()) {
      await tool.ask(`write 70000 10 ${round + 1}`);
      await mount.write(name, 'vm1', 'snapshot');
    }
    await tool.ask('write 70000 10 9');
    t.is(await byteAt(mount.file('vm1'), 70_000), 9, 'the flat file is live');
    for (const [round, name] of ['a', 'b', 'c'].entries()) {
      t.is(await byteAt(mount.control('vm1', 'at', name), 70_000), round + 1);
    }
    await mount.write('copy', 'vm1', 'clone');
    t.is(await byteAt(mount.file('copy'), 70_000), 9);
    await mount.write('old b', 'vm1', 'clone');
    t.is(await byteAt(mount.file('old'), 70_000), 2);
    await mount.write('a', 'vm1', 'delete');
    await mount.write('b bb', 'vm1', 'rename');
    t.is(await byteAt(mount.control('vm1', 'at', 'bb'), 70_000), 2);
    t.regex(await mount.refused('EEXIST', 'bb c', 'vm1', 'rename'), /c" already/);
    await tool.ask('write 70000 10 10');
    t.is(await byteAt(mount.file('copy'), 70_000), 9);
    t.is(await tool.ask('read 70009'), '10');
    await t.throwsAsync(mount.write('c', 'vm1', 'rollback'), { code: 'EBUSY' });
    await tool.end();
    await mount.write('c', 'vm1', 'rollback');
    t.is(await byteAt(mount.file('vm1'), 70_000), 3);
  },
);

test.serial('one cut across attached images and others', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB, plain: MiB });
  const tools = [await mapper(t, mount, 'vm1'), await mapper(t, mount, 'vm2')];
  const plain = await Conversation.start(
    t,
    await program('map-tool', mount.scratch),
    mount.file('plain'),
  );
  for (const tool of [...tools, plain]) await tool.ask('write 0 1 1');
  await mount.write('all vm1 vm2 plain', 'snapshot');
  for (const tool of [...tools, plain]) await tool.ask('write 0 1 2');
  for (const name of ['vm1', 'vm2', 'plain'])
    t.is(await byteAt(mount.control(name, 'at', 'all'), 0), 1, name);
  for (const tool of [...tools, plain]) t.is(await tool.ask('read 0'), '2');
});

test.serial(
  'the process is killed: everything it wrote is kept, and the mount has the image again',
  async (t) => {
    const mount = await mountedImages(t, { vm1: 4 * MiB });
    for (let round = 1; round <= 10; ++round) {
      const tool = await mapper(t, mount, 'vm1');
      await tool.ask(`write ${round * 65_536} 5000 ${round}`);
      if (round % 2 === 0) await mount.write(`s${round}`, 'vm1', 'snapshot');
      await tool.ask(`write 0 1 ${round}`);
      await tool.end('SIGKILL');
      while ((await attachedPid(mount, 'vm1')) !== null) await sleep(5);
      t.is(await byteAt(mount.file('vm1'), 0), round);
      t.is(await byteAt(mount.file('vm1'), round * 65_536 + 4999), round);
    }
    const file = await open(mount.file('vm1'), 'r+');
    await file.write(Buffer.of(200), 0, 1, 0);
    await file.close();
    t.is(await byteAt(mount.file('vm1'), 0), 200);
  },
);

test.serial(
  'the mount is killed: the process does not notice, and the next mount has it attached',
  async (t) => {
    const mount = await mountedImages(t, { vm1: 4 * MiB });
    const tool = await mapper(t, mount, 'vm1');
    for (let round = 1; round <= 4; ++round) {
      await tool.ask(`write ${round * 65_536} 5000 ${round}`);
      await mount.kill();
      await tool.ask(`write 0 1 ${round}`);
      t.is(await tool.ask('sync'), 'ok');
      await run('fusermount3', ['-u', '-z', mount.point]);
      await mount.mount();
      while ((await attachedPid(mount, 'vm1')) !== tool.pid) await sleep(20);
      await mount.write(`s${round}`, 'vm1', 'snapshot');
      t.is(await byteAt(mount.control('vm1', 'at', `s${round}`), 0), round);
      t.is(await byteAt(mount.file('vm1'), round * 65_536 + 4999), round);
    }
    await tool.end();
    t.deepEqual(await readdir(mount.control('vm1', 'at')), ['s1', 's2', 's3', 's4']);
  },
);
