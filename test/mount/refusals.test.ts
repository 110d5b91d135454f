/** Mounts that cannot be made, each with its own message; and the end of mounts. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { isPcowError } from '../../src/engine/index.js';
import { startDaemon, umount } from '../../src/mount/index.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { inMountNamespace } from '../helpers/mount-namespace.js';
import { pcowProgram } from '../helpers/mounted.js';

const run = promisify(execFile);

/** Runs `pcow mount` without a mount helper: it must fail. Returns its message. */
async function refused(
  t: TestMount['t'],
  directory: string,
  mountpoint: string,
  environment = {},
): Promise<string> {
  const error = await t.throwsAsync<Error & { code: number; stderr: string }>(
    run(process.execPath, [pcowProgram, 'mount', directory, mountpoint], {
      env: { ...process.env, ...environment },
    }),
  );
  t.is(error?.code, 11, error?.stderr);
  return error?.stderr ?? '';
}

test.serial('unsuitable mountpoints', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  const { images, scratch, point } = mount;
  t.regex(await refused(t, images, path.join(scratch, 'missing')), /does not exist.*mkdir/);
  await writeFile(path.join(scratch, 'file'), '');
  t.regex(await refused(t, images, path.join(scratch, 'file')), /not a directory/);
  const full = path.join(scratch, 'full');
  await mkdir(full);
  await writeFile(path.join(full, 'something'), '');
  t.regex(await refused(t, images, full), /not empty/);
  t.regex(await refused(t, images, images), /image directory itself/);
  const inside = path.join(images, 'inside');
  await mkdir(inside);
  t.regex(await refused(t, images, inside), /is in the image directory/);
  t.regex(await refused(t, images, scratch), /is below the mountpoint/);
  t.regex(await refused(t, path.join(scratch, 'nothing'), point), /does not exist/);
  t.regex(await refused(t, mount.image('vm1'), point), /not a directory/);
  t.deepEqual(await readdir(point), []);
});

test.serial('a machine without /dev/fuse or fusermount3', async (t) => {
  const { images, point } = await imagesFor(t, { vm1: MiB });
  t.regex(await refused(t, images, point, { PATH: '/nowhere' }), /fusermount3.*fuse3/);
  // In its own mount namespace, with nothing but null in /dev.
  const [command, ...words] = inMountNamespace([
    'sh',
    '-c',
    'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"',
    'sh',
    process.execPath,
    pcowProgram,
    'mount',
    images,
    point,
  ]);
  const error = await t.throwsAsync<Error & { stderr: string }>(run(command, words));
  t.regex(error?.stderr ?? '', /\/dev\/fuse/);
});

test.serial(
  'two mounts of one directory, a mount over a mount, a mount inside a mount',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    const { images, scratch, point } = mount;
    const second = path.join(scratch, 'second');
    const other = path.join(scratch, 'other');
    await mkdir(second);
    await mkdir(other);
    await symlink(images, path.join(scratch, 'same'));
    await mount.mount();
    for (const directory of [images, path.join(scratch, 'same')]) {
      const sentence = await refused(t, directory, second);
      t.true(sentence.includes(`mounted on ${point} already`), sentence);
    }
    t.regex(await refused(t, other, point), /is mounted on .* already.*pcow umount/);
    t.regex(await refused(t, other, path.join(point, '.pcow')), /is in the mount/);
    t.regex(await refused(t, point, second), /is in the mount/);
    await mount.unmount();
    await mount.mount();
  },
);

test.serial('a mountpoint on which something else is mounted', async (t) => {
  const { images, point } = await imagesFor(t, { vm1: MiB });
  await run('mount', ['-t', 'tmpfs', 'none', point]);
  t.teardown(() => run('umount', ['-l', point]).catch(() => undefined));
  t.regex(await refused(t, images, point), /something is mounted.*tmpfs/);
});

test.serial('a daemon is ready when it says so, and has ended when umount returns', async (t) => {
  const { images, point, scratch } = await imagesFor(t, { vm1: MiB });
  t.teardown(() => run('fusermount3', ['-u', '-z', point]).catch(() => undefined));
  const log = path.join(scratch, 'log');
  const pid = await startDaemon(images, point, { log });
  await writeFile(path.join(point, 'vm1'), 'content', { flag: 'r+' });
  await umount(point);
  for (let i = 0; i < 50 && (await alive(pid)); ++i) await sleep(10);
  t.false(await alive(pid));
  t.deepEqual(await readdir(point), []);
  t.regex(await readFile(log, 'utf8'), /is mounted on[^]*no longer mounted/);
  const error = await t.throwsAsync(umount(point));
  t.true(isPcowError(error, 'PCOW_MOUNT'));
  const refusal = await t.throwsAsync(startDaemon(images, path.join(scratch, 'missing')));
  t.true(isPcowError(refusal, 'PCOW_MOUNT') && refusal.message.includes('does not exist'));
  const misspelled = await t.throwsAsync(startDaemon(images, point, { readonly: true } as object));
  t.regex(misspelled?.message ?? '', /should be "readOnly"/);
});

async function alive(pid: number): Promise<boolean> {
  const state = /\) (\S)/.exec(await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ''))?.[1];
  return state !== undefined && state !== 'Z';
}

test.serial('umount of a mount in use names its users, and the mount continues', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const user = spawn(
    'bash',
    ['-c', 'exec 3< "$1"; echo open; read -r', 'bash', mount.file('vm1')],
    {
      stdio: ['pipe', 'pipe', 'ignore'],
    },
  );
  t.teardown(() => user.kill('SIGKILL'));
  await once(user.stdout, 'data');
  const error = await t.throwsAsync(umount(mount.point));
  t.regex(error?.message ?? '', new RegExp(`in use by process ${user.pid} \\(bash\\)`));
  await mount.write('s', 'vm1', 'snapshot');
  // A signal removes it from view; it ends with the last open file.
  mount.daemon.kill('SIGTERM');
  for (let i = 0; i < 100 && (await readdir(mount.point)).length > 0; ++i) await sleep(20);
  t.deepEqual(await readdir(mount.point), []);
  t.is(mount.daemon.exitCode, null);
  const ended = once(mount.daemon, 'exit');
  user.kill('SIGKILL');
  t.deepEqual(await ended, [0, null]);
});

test.serial('SIGTERM and SIGINT end a mount that is not in use', async (t) => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    await writeFile(mount.file('vm1'), 'x', { flag: 'r+' });
    const ended = once(mount.daemon, 'exit');
    mount.daemon.kill(signal);
    t.deepEqual(await ended, [0, null]);
    t.deepEqual(await readdir(mount.point), []);
  }
});

test.serial('a dead mount is removed by the next one, and by umount', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  await mount.kill();
  await t.throwsAsync(readdir(mount.point), { code: 'ENOTCONN' });
  await mount.mount();
  t.deepEqual(await readdir(mount.point), ['vm1']);
  await mount.kill();
  await umount(mount.point);
  t.deepEqual(await readdir(mount.point), []);
  await rm(mount.point, { recursive: true });
});

test.serial('directories with unusual names', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  const odd = path.join(mount.scratch, 'a, b\\c "d"\té');
  await mkdir(odd);
  const { stderr } = await run('cp', [mount.image('vm1'), odd]);
  t.is(stderr, '');
  const point = path.join(mount.scratch, 'p, q');
  await mkdir(point);
  t.teardown(() => run('fusermount3', ['-u', '-z', point]).catch(() => undefined));
  await startDaemon(odd, point);
  t.deepEqual(await readdir(point), ['vm1']);
  await umount(point);
});
