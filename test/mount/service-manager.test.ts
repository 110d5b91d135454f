/**
 * A mount in the foreground notifies the service manager that started it when it is ready, and when
 * it ends.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import test, { type ExecutionContext } from 'ava';

import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';

const LISTENER = fileURLToPath(new URL('../../../test/programs/notify-socket.py', import.meta.url));

/** A fake service manager; yields the messages that it gets. */
async function listener(
  t: ExecutionContext<unknown>,
  socket: string,
): Promise<AsyncIterator<string>> {
  const child = spawn('python3', [LISTENER, socket], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  t.is((await lines.next()).value, 'ready');
  return lines;
}

function mountUnder(t: ExecutionContext<unknown>, mount: TestMount, socket: string) {
  const words = [
    '--pdeathsig',
    'KILL',
    '--',
    process.execPath,
    pcowProgram,
    'mount',
    '--foreground',
  ];
  const child = spawn('setpriv', [...words, mount.images, mount.point], {
    env: { ...process.env, NOTIFY_SOCKET: socket },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  t.teardown(async () => {
    child.kill('SIGKILL');
    await once(spawn('fusermount3', ['-u', '-z', mount.point], { stdio: 'ignore' }), 'close');
  });
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (log += text));
  const ended = once(child, 'close').then(([exit]) => exit as number | null);
  return { child, said: () => log, ended };
}

for (const place of ['a path', 'an abstract name'] as const) {
  test.serial(`READY=1 when it is mounted, STOPPING=1 as it ends: by ${place}`, async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    const socket =
      place === 'a path' ? path.join(mount.scratch, 'notify') : `@pcow-test-${process.pid}`;
    const messages = await listener(t, socket);
    const { child, ended } = mountUnder(t, mount, socket);
    const ready = (await messages.next()) as IteratorYieldResult<string>;
    t.is(JSON.parse(ready.value), `READY=1\nSTATUS=${mount.images} is mounted on ${mount.point}\n`);
    // The message is true.
    t.is((await readFile(mount.file('vm1'))).length, MiB);
    child.kill('SIGTERM');
    const stopping = (await messages.next()) as IteratorYieldResult<string>;
    t.is(JSON.parse(stopping.value), 'STOPPING=1\n');
    t.is(await ended, 0);
  });
}

test.serial(
  'a service manager that cannot be reached is reported in the log, and does no harm',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    const { child, said, ended } = mountUnder(t, mount, path.join(mount.scratch, 'nobody'));
    await eventually(() =>
      Promise.resolve(/can't reach the service manager at .*nobody/.test(said())),
    );
    child.kill('SIGTERM');
    t.is(await ended, 0, said());
  },
);
