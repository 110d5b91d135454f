/**
 * Operations of the library on images in a mount, and commands that it starts under the monitor.
 * (docs/library.md has the first steps.)
 */
import { once } from 'node:events';
import test from 'ava';
import { isPcowError, MountedImage, spawnMonitored } from '../../src/index.js';
import { MiB, mountedImages } from '../helpers/mount.js';
import { program } from '../helpers/program.js';

test.serial('every change through a control file, and its errors', async (t) => {
  const mount = await mountedImages(t, { base: MiB, vm1: MiB });
  const base = await MountedImage.find(mount.file('base'));
  t.is(base.flatFile, mount.file('base'));
  await base.snapshot('one');
  await t.throwsAsync(base.snapshot('one'), {
    code: 'PCOW_EXISTS',
    message: /has a snapshot "one" already/,
  });
  await t.throwsAsync(base.rollback('none'), { code: 'PCOW_NOT_FOUND' });
  const clone = await base.clone('clone', 'one');
  await base.renameSnapshot('one', 'uno');
  await t.throwsAsync(base.renameSnapshot('one', 'two'), { code: 'PCOW_NOT_FOUND' });
  await base.renameSnapshot('uno', 'one');
  await t.throwsAsync(base.delete('one'), { code: 'PCOW_IN_USE' });
  const reports: number[] = [];
  await clone.flatten({ onProgress: (done) => reports.push(done) });
  await base.delete('one');
  await clone.snapshot('a');
  await clone.rollback('a');
  const renamed = await clone.rename('renamed');
  await t.throwsAsync(renamed.rename('vm1'), { code: 'PCOW_EXISTS' });
  await renamed.resize(2 * MiB);
  await t.throwsAsync(renamed.resize(MiB), { code: 'PCOW_INVALID' });
  await renamed.delete('a');
  await renamed.compact();
  await renamed.rebase({ image: 'base' });
  await renamed.commit('patched');
  await renamed.remove();
  await t.throwsAsync(MountedImage.find(mount.image('renamed')), { code: 'PCOW_NOT_FOUND' });
  await t.throwsAsync(MountedImage.find(mount.point), { code: 'PCOW_MOUNT' });
  t.is((await base.status()).state, 'ok');
});

test.serial('work that is aborted', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const vm1 = await MountedImage.find(mount.image('vm1'));
  await vm1.snapshot('one');
  const error: unknown = await vm1
    .delete('one', { signal: AbortSignal.abort('enough') })
    .catch((it: unknown) => it);
  t.true(isPcowError(error, 'PCOW_CANCELLED'));
  t.like(error, { cause: 'enough' });
});

test.serial('a command under the monitor has the image', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const tool = await program('map-tool', mount.scratch);
  const child = spawnMonitored(tool, [mount.file('vm1')], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  if (child.stdout === null || child.stdin === null) throw new Error('it has no pipes');
  await once(child.stdout, 'data');
  child.stdin.write('write 0 1 1\n');
  await once(child.stdout, 'data');
  const { attached } = await (await MountedImage.find(mount.file('vm1'))).status();
  t.like(attached, { pid: child.pid, command: 'map-tool' });
  child.stdin.end();
  await once(child, 'close');
});
