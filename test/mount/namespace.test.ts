/** What a mount shows, and what rm, mv and similar commands do in it. */
import { execFile } from 'node:child_process';
import {
  chmod,
  copyFile,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  statfs,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, mountedImages, type Status } from '../helpers/mount.js';

const run = promisify(execFile);

test.serial('images show as plain files of their full size', async (t) => {
  const mount = await imagesFor(t, { vm1: 64 * MiB, vm2: 2 ** 40 });
  await chmod(mount.image('vm1'), 0o640);
  await utimes(mount.image('vm1'), 1_600_000_000, 1_600_000_000);
  await mount.mount();
  t.deepEqual(await readdir(mount.point), ['vm1', 'vm2']);
  const [flat, image] = [await stat(mount.file('vm1')), await stat(mount.image('vm1'))];
  t.is(flat.size, 64 * MiB);
  t.is((await stat(mount.file('vm2'))).size, 2 ** 40);
  t.is(flat.mode, image.mode);
  t.is(flat.uid, image.uid);
  t.is(flat.mtimeMs, image.mtimeMs);
  t.is(flat.blocks, image.blocks);
  t.true(flat.isFile());
});

test.serial(
  'the control files are listed only with --show-control, and can always be opened by their names',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    t.deepEqual(await readdir(mount.point), ['vm1']);
    await mount.write('s', 'vm1', 'snapshot');
    const copy = path.join(mount.scratch, 'copy');
    await run('cp', ['-r', mount.point, copy]);
    t.deepEqual(await readdir(copy), ['vm1']);
    await mount.unmount();
    await mount.mount('--show-control');
    t.deepEqual(await readdir(mount.point), ['.pcow', 'vm1']);
  },
);

test.serial('a flat file has exactly the times of its image, from the first stat on', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await run('touch', ['-d', '2020-02-02 02:02:02.123456789 UTC', mount.image('vm1')]);
  await mount.mount();
  const time = async () => (await stat(mount.file('vm1'), { bigint: true })).mtimeNs;
  t.is(await time(), 1_580_608_922_123_456_789n);
  t.is(await time(), 1_580_608_922_123_456_789n);
  await run('touch', ['-d', '2021-02-02 02:02:02.987654321 UTC', mount.image('vm1')]);
  t.is(await time(), 1_612_231_322_987_654_321n);
});

test.serial('read-only control files refuse writes', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  for (const words of [
    ['help'],
    ['status'],
    ['vm1', 'status'],
    ['vm1', 'snapshots'],
    ['vm1', 'metrics'],
  ]) {
    await t.throwsAsync(mount.write('x', ...words), { code: 'EACCES' }, words.join('/'));
  }
});

test.serial('du shows the disk space of the images', async (t) => {
  const mount = await mountedImages(t, { vm1: 64 * MiB });
  await run('dd', [
    'if=/dev/urandom',
    `of=${mount.file('vm1')}`,
    'bs=1M',
    'count=5',
    'conv=notrunc,fsync',
  ]);
  const { stdout } = await run('du', ['-k', mount.file('vm1')]);
  const kib = Number(stdout.split('\t')[0]);
  t.true(kib >= 5 * 1024 && kib < 6 * 1024, `du says ${kib} KiB`);
  t.is(kib * 1024, (await mountStatusOf(mount.control('vm1', 'status'))).diskUse);
});

async function mountStatusOf(file: string): Promise<Status & { diskUse: number }> {
  return JSON.parse(await readFile(file, 'utf8')) as Status & { diskUse: number };
}

test.serial('df shows the disk of the directory', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const [mounted, directory] = [await statfs(mount.point), await statfs(mount.images)];
  t.is(mounted.blocks * mounted.bsize, directory.blocks * directory.bsize);
});

test.serial('images that appear or disappear are noticed at once', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await Image.create(mount.image('new'), { size: 3 * MiB });
  t.is((await stat(mount.file('new'))).size, 3 * MiB);
  await rename(mount.image('new'), mount.image('newer'));
  t.deepEqual(await readdir(mount.point), ['newer', 'vm1']);
  await t.throwsAsync(readFile(mount.file('new')), { code: 'ENOENT' });
  await rm(mount.image('newer'));
  await t.throwsAsync(stat(mount.file('newer')), { code: 'ENOENT' });
  // Another image with the same name.
  t.is((await stat(mount.file('vm1'))).size, MiB);
  await rm(mount.image('vm1'));
  await Image.create(mount.image('vm1'), { size: 2 * MiB });
  t.is((await stat(mount.file('vm1'))).size, 2 * MiB);
  await mount.write('s', 'vm1', 'snapshot');
});

test.serial('files that are not images do no harm, and status explains them', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB, cut: MiB, base: MiB });
  await writeFile(path.join(mount.images, 'notes.txt'), 'not shown at all');
  await writeFile(mount.image('text'), 'hello');
  await writeFile(mount.image('empty'), '');
  await mkdir(mount.image('folder'));
  await writeFile(mount.image('cut'), (await readFile(mount.image('cut'))).subarray(0, 5000));
  const flipped = await readFile(mount.image('vm1'));
  for (let at = 0; at < 8192; at += 7) flipped[at] = (flipped[at] ?? 0) ^ 0x55;
  await writeFile(mount.image('flipped'), flipped);
  await Image.create(mount.image('orphan'), {
    base: { path: mount.image('base'), layer: await frozenLayer(mount.image('base')) },
  });
  await rm(mount.image('base'));
  await mount.mount();
  t.deepEqual(await readdir(mount.point), ['vm1']);
  const states: [string, RegExp][] = [
    ['text', /^not an image$/],
    ['empty', /^not an image$/],
    ['folder', /^not an image$/],
    ['cut', /^(not an image|damaged)$/],
    ['flipped', /^(not an image|damaged)$/],
    ['orphan', /^base missing$/],
  ];
  for (const [name, wanted] of states) {
    const { state, problem } = await mount.status(name);
    t.regex(state, wanted, name);
    t.truthy(problem, name);
    t.deepEqual(await readdir(path.join(mount.point, '.pcow', name)), ['status'], name);
    await t.throwsAsync(readFile(mount.file(name)), { code: 'ENOENT' }, name);
    await t.throwsAsync(mount.write('s', name, 'snapshot'), { code: 'ENOENT' }, name);
  }
  t.is((await mount.status('vm1')).state, 'ok');
  await mount.write('s', 'vm1', 'snapshot');
  const whole = JSON.parse(await readFile(path.join(mount.point, '.pcow/status'), 'utf8')) as {
    images: { name: string; state: string }[];
  };
  t.deepEqual(
    whole.images.filter(({ state }) => state === 'ok').map(({ name }) => name),
    ['vm1'],
  );
});

async function frozenLayer(file: string): Promise<number> {
  const image = await Image.open(file, { write: true });
  try {
    return await image.freezeForClone('auto');
  } finally {
    await image.close();
  }
}

test.serial(
  'links and bases outside of the image directory are refused, unless they are allowed',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    const outside = path.join(mount.scratch, 'outside.pcow');
    await Image.create(outside, { size: MiB });
    await Image.create(mount.image('child'), {
      base: { path: outside, layer: await frozenLayer(outside) },
    });
    await symlink(outside, mount.image('link'));
    await symlink('vm1.pcow', mount.image('alias'));
    await mount.mount();
    t.deepEqual(await readdir(mount.point), ['alias', 'vm1']);
    const child = await mount.status('child');
    t.is(child.state, 'base outside of the directory');
    t.regex(child.problem ?? '', /outside/);
    t.is((await mount.status('link')).state, 'outside of the directory');
    await mount.unmount();
    await mount.mount('--allow-outside-base');
    t.deepEqual(await readdir(mount.point), ['alias', 'child', 'link', 'vm1']);
  },
);

test.serial('nothing can be made in a mount', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await t.throwsAsync(mkdir(mount.file('directory')), { code: 'EPERM' });
  await t.throwsAsync(writeFile(mount.file('file'), ''), { code: 'EPERM' });
  await t.throwsAsync(symlink('vm1', mount.file('link')), { code: 'EPERM' });
  await t.throwsAsync(writeFile(mount.control('vm1', 'other'), ''), { code: 'EPERM' });
  const { lastError } = JSON.parse(
    await readFile(path.join(mount.point, '.pcow/status'), 'utf8'),
  ) as Status;
  t.regex(lastError?.message ?? '', /pcow create/);
});

test.serial('rm removes an image that holds nothing', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await rm(mount.file('vm1'));
  t.deepEqual(await readdir(mount.images), []);
  t.deepEqual(await readdir(mount.point), []);
});

test.serial(
  'rm refuses an image that others stand on, or that is open; mv updates those that stand on it',
  async (t) => {
    const mount = await mountedImages(t, { base: MiB, vm1: MiB });
    await mount.write('child', 'base', 'clone');
    await t.throwsAsync(rm(mount.file('base')), { code: 'EBUSY' });
    const { lastError } = await mount.status('base');
    t.is(lastError?.command, 'rm');
    t.regex(lastError?.message ?? '', /child\.pcow/);
    await rename(mount.file('base'), mount.file('ground'));
    t.is((await mount.status('child')).state, 'ok');
    const holder = execFile('sleep', ['60']);
    const reader = execFile('bash', [
      '-c',
      'exec 3< "$1"; echo open; read -r',
      'bash',
      mount.file('vm1'),
    ]);
    t.teardown(() => [holder, reader].map((child) => child.kill('SIGKILL')));
    await new Promise((resolve) => reader.stdout?.once('data', resolve));
    await t.throwsAsync(rm(mount.file('vm1')), { code: 'EBUSY' });
    t.regex(
      (await mount.status('vm1')).lastError?.message ?? '',
      new RegExp(`process ${reader.pid} \\(bash\\)`),
    );
    reader.kill('SIGKILL');
    await rm(mount.file('child'));
    // It has the snapshot that was made for the clone.
    await t.throwsAsync(rm(mount.file('ground')), { code: 'EPERM' });
    await mount.write('ground', 'ground', 'remove');
  },
);

test.serial('mv renames the image file, and keeps everything in it', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  await writeFile(mount.file('vm1'), 'content', { flag: 'r+' });
  await mount.write('s', 'vm1', 'snapshot');
  await rename(mount.file('vm1'), mount.file('vm3'));
  t.deepEqual(await readdir(mount.images), ['vm2.pcow', 'vm3.pcow']);
  t.is((await readFile(mount.file('vm3'))).toString('latin1', 0, 7), 'content');
  t.deepEqual(await readdir(mount.control('vm3', 'at')), ['s']);
  await mount.write('s2', 'vm3', 'snapshot');
  await t.throwsAsync(rename(mount.file('vm3'), mount.file('vm2')), { code: 'EEXIST' });
  for (const bad of ['.hidden', 'with space', 'x'.repeat(251), 'snapshot', 'a@b']) {
    await t.throwsAsync(rename(mount.file('vm3'), mount.file(bad)), { code: 'EINVAL' }, bad);
  }
  await t.throwsAsync(rename(mount.file('vm3'), mount.control('vm2', 'vm3')), { code: 'EPERM' });
});

test.serial('chmod and touch act on the image file', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await chmod(mount.file('vm1'), 0o600);
  t.is((await stat(mount.image('vm1'))).mode & 0o777, 0o600);
  await utimes(mount.file('vm1'), 1000, 2000);
  t.is((await stat(mount.image('vm1'))).mtimeMs, 2_000_000);
  t.is(
    (await stat(mount.control('vm1', 'snapshot'))).mode & 0o777,
    0o600,
    'control files have the rights of the image',
  );
});

test.serial('extended attributes show state, chain and status', async (t) => {
  const mount = await mountedImages(t, { base: MiB });
  await mount.write('child', 'base', 'clone');
  const script =
    'import os,sys\nfor n in sorted(os.listxattr(sys.argv[1])): print(n, os.getxattr(sys.argv[1], n).decode().split())';
  const { stdout } = await run('python3', ['-c', script, mount.file('child')]);
  t.regex(stdout, /^user\.pcow\.chain \['\S+child\.pcow', '\S+base\.pcow@auto-\S+'\]$/m);
  t.regex(stdout, /^user\.pcow\.state \['ok'\]$/m);
  t.regex(stdout, /^user\.pcow\.status /m);
  // libvirt stores the owner of a file there, unless the filesystem says that it does not support
  // such attributes.
  const trusted =
    'import errno,os,sys\ntry: os.getxattr(sys.argv[1], "trusted.x")\nexcept OSError as e: print(errno.errorcode[e.errno])';
  t.regex(
    (await run('python3', ['-c', trusted, mount.file('child')])).stdout,
    /^EOPNOTSUPP|ENOTSUP$/m,
  );
  // Monitors leave the mappings of a snapshot to the kernel, because this mount has no clean store.
  const [snapshot = ''] = await readdir(mount.control('base', 'at'));
  const forMonitors = trusted.replace('trusted.x', 'user.pcow.attach-snapshot');
  t.is(
    (await run('python3', ['-c', forMonitors, path.join(mount.control('base', 'at'), snapshot)]))
      .stdout,
    'ENODATA\n',
  );
});

test.serial('an image with the name of a control file has a flat file nevertheless', async (t) => {
  const mount = await mountedImages(t, { snapshot: MiB, vm1: MiB });
  t.is((await stat(mount.file('snapshot'))).size, MiB);
  t.true((await stat(path.join(mount.point, '.pcow/snapshot'))).isFile());
});

test.serial('an image that is read-only for the mount', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await writeFile(path.join(mount.scratch, 'data'), 'x');
  await mount.mount('--read-only');
  await t.throwsAsync(writeFile(mount.file('vm1'), 'x', { flag: 'r+' }), { code: 'EROFS' });
  await t.throwsAsync(mount.write('s', 'vm1', 'snapshot'), { code: 'EROFS' });
  await t.throwsAsync(rm(mount.file('vm1')), { code: 'EROFS' });
  t.is((await readFile(mount.file('vm1'))).length, MiB);
  const { holder } = await mount.status('vm1');
  t.is(holder, null);
  await copyFile(mount.file('vm1'), path.join(mount.scratch, 'copy'));
});
