/** A mount that goes on elsewhere does not end: who ends it is told where, and does not wait for ever. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { imagesFor, MiB } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';

const run = promisify(execFile);

async function refusalOf(...words: string[]): Promise<{ code: number; stderr: string }> {
  const [command = '', ...rest] = words;
  return run(command, rest).then(
    () => ({ code: 0, stderr: '' }),
    ({ code, stderr }: { code: number; stderr: string }) => ({ code, stderr }),
  );
}

test.serial('a bind mount of the mountpoint', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const other = path.join(mount.scratch, 'other');
  await mkdir(other);
  await run('mount', ['--bind', mount.point, other]);
  t.teardown(() => run('umount', ['--lazy', other]).catch(() => undefined));
  const { code, stderr } = await refusalOf(process.execPath, pcowProgram, 'umount', mount.point);
  t.is(code, 11);
  t.regex(stderr, new RegExp(`^pcow: ${mount.images} goes on being mounted on ${other}: "umount ${other}"`, 'm'));
});

test.serial('a mount that is taken away in another mount namespace only', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const { code, stderr } = await refusalOf('unshare', '-m', process.execPath, pcowProgram, 'umount', mount.point);
  t.is(code, 11);
  t.regex(
    stderr,
    new RegExp(`^pcow: ${mount.images} goes on being mounted on ${mount.point} in another mount namespace, that of`),
  );
  t.is((await mount.status('vm1')).state, 'ok');
});

test.serial('a mount that ends while the next one of its directory begins', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const firstEnded = once(mount.daemon, 'close');
  const umount = spawn(process.execPath, [pcowProgram, 'umount', mount.point], { stdio: 'inherit' });
  t.teardown(() => umount.kill('SIGKILL'));
  const umountEnded = once(umount, 'close');
  // From the moment on in which it is out of sight, so that it does not see the one in which nobody has the lock.
  while ((await readFile('/proc/self/mountinfo', 'utf8')).includes(` ${mount.point} `)) continue;
  umount.kill('SIGSTOP');
  await firstEnded;
  await mount.mount();
  umount.kill('SIGCONT');
  t.deepEqual(await umountEnded, [0, null]);
  t.is((await mount.status('vm1')).state, 'ok');
});
