/** `mount.fuse.pcow`, called as by mount(8). */
import { execFile } from 'node:child_process';
import { chmod, readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { settingsOf } from '../../cli/mount-helper-program.js';
import { umount } from '../../src/mount/index.js';
import { pcowMounts } from '../../src/images/mount-table.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { fails, mountHelperIn, succeeds } from './outcome.js';

const run = promisify(execFile);

async function stage(t: ExecutionContext<unknown>): Promise<TestMount> {
  const images = await imagesFor(t, { vm1: MiB });
  t.teardown(() => run('fusermount3', ['-u', '-z', images.point]).catch(() => undefined));
  return images;
}

test('options of mount(8) and of Pcow', (t) => {
  t.deepEqual(
    settingsOf(['rw', 'nosuid', 'nodev', 'relatime', 'x-systemd.automount', 'nofail'], false),
    {
      readOnly: false,
    },
  );
  t.deepEqual(
    settingsOf(['ro', 'allow_other', 'allow_outside_base', 'no_stop', 'log=/a=b'], false),
    {
      readOnly: true,
      allowOther: true,
      allowOutsideBase: true,
      stopMappers: false,
      log: '/a=b',
    },
  );
  t.deepEqual(settingsOf(['clean_store=2G'], false), { cleanStore: 2 ** 31 });
  t.throws(() => settingsOf(['clean_store=4M'], false), { message: /64 MiB/ });
  // The options that mount(8) passes for "user", "owner" and the like, and its other options.
  t.deepEqual(
    settingsOf(['noexec', 'nosuid', 'nodev', 'user=alice', 'users', 'owner', 'group'], false),
    {
      noExec: true,
    },
  );
  t.deepEqual(settingsOf(['user', 'noexec', 'exec', 'sync'], false), { noExec: false, sync: true });
  const others =
    'suid,dev,dirsync,nodiratime,diratime,lazytime,nosymfollow,nomand,norelatime,atime,silent,X-mount.mkdir';
  t.deepEqual(settingsOf(others.split(','), false), {});
  t.throws(() => settingsOf(['allow-other'], false), { message: /no mount option "allow-other"/ });
  t.throws(() => settingsOf(['remount', 'ro'], false), {
    message: /options of a mount cannot be changed/,
  });
  t.deepEqual(settingsOf(['unheard_of'], true), {});
});

test.serial('it mounts, with its options, and the mount outlives it', async (t) => {
  const { images, point } = await stage(t);
  const helper = mountHelperIn('/');
  await succeeds(t, helper(images, point, '-f', '-o', 'ro'));
  t.false((await pcowMounts()).some(({ mountpoint }) => mountpoint === point));
  await succeeds(t, helper(images, point, '-n', '-v', '-o', 'ro,nosuid,nodev', '-t', 'fuse.pcow'));
  t.like(
    (await pcowMounts()).find(({ mountpoint }) => mountpoint === point),
    { directory: images, readOnly: true },
  );
  t.is((await readFile(path.join(point, 'vm1'))).length, MiB);
  await umount(point);
});

test.serial('noexec and sync work as on any filesystem', async (t) => {
  const { images, point } = await stage(t);
  await chmod(path.join(images, 'vm1.pcow'), 0o755);
  await succeeds(t, mountHelperIn('/')(images, point, '-o', 'noexec,sync'));
  await run('dd', [
    'if=/dev/zero',
    `of=${path.join(point, 'vm1')}`,
    'bs=4096',
    'count=3',
    'conv=notrunc',
  ]);
  t.regex(
    await readFile(path.join(point, '.pcow/metrics'), 'utf8'),
    /^pcow_syncs_total\{image="vm1"\} 3$/m,
  );
  await t.throwsAsync(run(path.join(point, 'vm1')), { code: 'EACCES' });
  await umount(point);
});

test.serial('errors are reported, with the exit codes of pcow', async (t) => {
  const { images, point, scratch } = await stage(t);
  const helper = async (...words: string[]) => {
    const { stderr, ...rest } = await mountHelperIn('/')(...words);
    return { stderr: stderr.replace(/^mount\.fuse\.pcow: /, 'pcow: '), ...rest };
  };
  await fails(t, helper(images, path.join(scratch, 'none')), 11, /mountpoint .* does not exist/);
  await fails(t, helper(images, point, '-o', 'nonsense'), 2, /no mount option "nonsense"/);
  await fails(t, helper(images), 2, /mountpoint/);
});

test.serial('SIGHUP reopens the log', async (t) => {
  const { images, point, scratch } = await stage(t);
  const log = path.join(scratch, 'mount.log');
  await succeeds(t, mountHelperIn('/')(images, point, '-o', `log=${log}`));
  const { pid } = JSON.parse(await readFile(path.join(point, '.pcow/status'), 'utf8')) as {
    pid: number;
  };
  await rename(log, `${log}.1`);
  process.kill(pid, 'SIGHUP');
  await eventually(async () =>
    (await readFile(log, 'utf8').catch(() => '')).includes('opened the log again'),
  );
  await t.throwsAsync(writeFile(path.join(point, '.pcow/vm1/rollback'), 'none'), {
    code: 'ENOENT',
  });
  t.regex(await readFile(log, 'utf8'), /rollback failed/);
  const old = await readFile(`${log}.1`, 'utf8');
  t.regex(old, /is mounted on/);
  t.notRegex(old, /rollback failed/);
  await umount(point);
});
