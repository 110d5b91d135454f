/**
 * A mount that is ended while guests run: those under the monitor continue, and the next mount has
 * them; the mount waits for others.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readdir, readFile } from 'node:fs/promises';

import test, { type ExecutionContext } from 'ava';

import { umount } from '../../src/mount/daemon/umount.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { checkerOf, checkNumbers, NumberWriter } from '../helpers/number-writer.js';
import { Conversation, program } from '../helpers/program.js';

/**
 * As `systemctl stop` does it. Resolves with how the mount's process ended. The test's limit is far
 * below any guest's life.
 */
async function told(mount: TestMount): Promise<unknown[]> {
  const ended = once(mount.daemon, 'exit');
  mount.daemon.kill('SIGTERM');
  return ended;
}

test.serial(
  'while a guest stores and flushes: the next mount has it, and takes live snapshots',
  async (t) => {
    const writer = await NumberWriter.prepare(t, {});
    const { mount } = writer;
    await mount.mount();
    await writer.start(1);
    const { pid } = writer.process;
    for (let round = 0; round < 5; ++round) {
      await attachedTo(mount, 'vm1', pid);
      await writer.flushesAgain();
      t.deepEqual(await told(mount), [0, null]);
      t.deepEqual(await readdir(mount.point), []);
      await writer.flushesAgain();
      await mount.mount();
      await attachedTo(mount, 'vm1', pid);
      const before = await writer.stored();
      await mount.write(`s${round}`, 'vm1', 'snapshot');
      t.notThrows(await checkerOf(mount, `s${round}`, before, await writer.stored()));
    }
    await writer.process.end('SIGKILL');
    await attachedTo(mount, 'vm1', null);
    checkNumbers(await readFile(mount.file('vm1')), await writer.stored());
  },
);

test.serial(
  'pcow umount refuses while a guest from an earlier mount is attached, and names it',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB, vm2: MiB });
    await mount.mount();
    const guest = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await guest.ask('write 0 4096 7'), 'ok');
    t.deepEqual(await told(mount), [0, null]);
    await mount.mount();
    await attachedTo(mount, 'vm1', guest.pid);
    const error = await t.throwsAsync(umount(mount.point));
    t.regex(
      String(error?.message),
      new RegExp(`is in use by process ${guest.pid} \\(map-tool\\), which has vm1 attached`),
    );
    await attachedTo(mount, 'vm1', guest.pid);
    await guest.end();
    await attachedTo(mount, 'vm1', null);
    await umount(mount.point);
  },
);

/** Maps a file to read; answers an offset with the byte there. */
const READER = `
import mmap, sys
with open(sys.argv[1], 'rb') as file: mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print('mapped')
for line in sys.stdin: print(mapped[int(line)])
`;

test.serial(
  'the mount does not wait for a process that only reads its image through the monitor, which continues to read',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    const file = await open(mount.file('vm1'), 'r+');
    await file.write(Buffer.of(7), 0, 1, 8192);
    await file.close();
    const reader = await monitored(t, 'python3', ['-u', '-c', READER, mount.file('vm1')]);
    t.is(await reader.ask('0'), '0');
    t.deepEqual(await told(mount), [0, null]);
    t.is(await reader.ask('8192'), '7');
  },
);

/**
 * Every user that is not under the monitor: of the flat file of an attached image, of that of
 * another image, of a snapshot.
 */
const others: Record<string, (mount: TestMount) => string> = {
  'the flat file of the same image': (mount) => mount.file('vm1'),
  'another flat file': (mount) => mount.file('vm2'),
  'a snapshot': (mount) => mount.control('vm1', 'at', 's'),
};

for (const [what, fileOf] of Object.entries(others)) {
  test.serial(
    `a process that reads ${what} without the monitor reads to the end, and then the mount ends`,
    async (t) => {
      const mount = await imagesFor(t, { vm1: MiB, vm2: MiB });
      await mount.mount();
      const guest = await monitored(t, await program('map-tool', mount.scratch), [
        mount.file('vm1'),
      ]);
      t.is(await guest.ask('write 0 4096 7'), 'ok');
      await mount.write('s', 'vm1', 'snapshot');
      const reader = await openReader(t, fileOf(mount));
      const ended = told(mount);
      await mount.logged(/no longer visible/);
      reader.stdin.write('\n');
      const [bytes] = (await once(reader.stdout, 'data')) as [string];
      t.is(Number(bytes), MiB);
      t.deepEqual(await ended, [0, null]);
      t.is(await guest.ask('write 4096 4096 8'), 'ok');
      await mount.mount();
      await attachedTo(mount, 'vm1', guest.pid);
      await guest.end();
      await attachedTo(mount, 'vm1', null);
      t.is((await readFile(mount.file('vm1')))[4096], 8);
    },
  );
}

/** Has a file open. At each line it reads the whole file, and prints the number of bytes. */
async function openReader(t: ExecutionContext<unknown>, file: string) {
  const script = 'exec 3< "$1"; echo open; read -r; cat <&3 | wc -c';
  const child = spawn('bash', ['-c', script, 'bash', file], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  child.stdout.setEncoding('utf8');
  await once(child.stdout, 'data');
  return child;
}

test.serial('a guest without the monitor keeps its mount, and its memory', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB, vm2: MiB });
  await mount.mount();
  const tool = await program('map-tool', mount.scratch);
  const guest = await monitored(t, tool, [mount.file('vm1')]);
  const plain = await Conversation.start(t, tool, mount.file('vm2'));
  t.is(await guest.ask('write 0 4096 7'), 'ok');
  t.is(await plain.ask('write 0 4096 8'), 'ok');
  const ended = told(mount);
  await mount.logged(/no longer visible/);
  t.is(await plain.ask('write 4096 4096 9'), 'ok');
  t.is(await plain.ask('sync'), 'ok');
  t.is(mount.daemon.exitCode, null);
  await plain.end();
  t.deepEqual(await ended, [0, null]);
  await mount.mount();
  await attachedTo(mount, 'vm1', guest.pid);
  const bytes = await readFile(mount.file('vm2'));
  t.deepEqual([bytes[0], bytes[4096]], [8, 9]);
  await guest.end();
});
