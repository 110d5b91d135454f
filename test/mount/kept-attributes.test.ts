/**
 * The kernel keeps the attributes of flat files and of the mountpoint until they change. Each
 * change must become visible: those through the mount at once, and those that other processes make
 * in the image directory as soon as inotify has reported them to the mount.
 */
import {
  chmod,
  link,
  open,
  readdir,
  rename,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

/** Asks twice, so that the kernel then has attributes that it may keep. */
async function sizeOf(mount: TestMount, name: string): Promise<number> {
  await stat(mount.file(name));
  return (await stat(mount.file(name))).size;
}

/**
 * Stores an unchanged byte through a mapping: this changes the time, and inotify does not report
 * it.
 */
const STORES = `
import mmap, sys
file = open(sys.argv[1], 'r+b')
mapped = mmap.mmap(file.fileno(), 0)
print('mapped', flush=True)
for line in sys.stdin:
    mapped[0] = mapped[0]
    mapped.flush()
    print('stored', flush=True)
`;

/** Changes the time of an image file so that inotify does not report it. Returns the new time. */
async function moveTime(image: string, writer: Conversation): Promise<bigint> {
  const before = await modified(image);
  await eventually(
    async () => (await writer.ask('store')) === 'stored' && (await modified(image)) !== before,
  );
  return modified(image);
}

async function modified(file: string): Promise<bigint> {
  return (await stat(file, { bigint: true })).mtimeNs;
}

test.serial('the kernel does not ask again until it is notified of a change', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  const writer = await Conversation.start(t, 'python3', '-c', STORES, mount.image('vm1'));
  await sizeOf(mount, 'vm1');
  const kept = await modified(mount.file('vm1'));
  const moved = await moveTime(mount.image('vm1'), writer);
  await utimes(mount.image('vm2'), 1000, 2000);
  await writeFile(path.join(mount.images, 'notes.txt'), 'of no image');
  await eventually(async () => (await modified(mount.file('vm2'))) === 2_000_000_000_000n);
  t.is(await modified(mount.file('vm1')), kept);
  await chmod(mount.image('vm1'), 0o640);
  await eventually(async () => (await modified(mount.file('vm1'))) === moved);
});

test.serial('changes through the mount are visible at once', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  await mount.write('small', 'vm1', 'snapshot');
  t.is(await sizeOf(mount, 'vm1'), MiB);
  await mount.write(`${2 * MiB}`, 'vm1', 'resize');
  t.is(await sizeOf(mount, 'vm1'), 2 * MiB);
  await mount.write('small', 'vm1', 'rollback');
  t.is(await sizeOf(mount, 'vm1'), MiB);
  await chmod(mount.file('vm1'), 0o600);
  t.is((await stat(mount.file('vm1'))).mode & 0o777, 0o600);
  await sizeOf(mount, 'vm1');
  await utimes(mount.file('vm1'), 1000, 2000);
  t.is((await stat(mount.file('vm1'))).mtimeMs, 2_000_000);
  await mount.write('child small', 'vm1', 'clone');
  t.is(await sizeOf(mount, 'child'), MiB);
  await mount.write('child', 'child', 'remove');
  await t.throwsAsync(stat(mount.file('child')), { code: 'ENOENT' });
  await mount.write(`${3 * MiB}`, 'vm2', 'resize');
  t.is(await sizeOf(mount, 'vm2'), 3 * MiB);
  await mount.write('vm2', 'vm2', 'remove');
  await t.throwsAsync(stat(mount.file('vm2')), { code: 'ENOENT' });
  await rename(mount.file('vm1'), mount.file('vm2'));
  await t.throwsAsync(stat(mount.file('vm1')), { code: 'ENOENT' });
  t.is(await sizeOf(mount, 'vm2'), MiB);
  await mount.write(`${4 * MiB}`, 'vm2', 'resize');
  t.is(await sizeOf(mount, 'vm2'), 4 * MiB);
});

test.serial('a commit changes the visible size of the base', async (t) => {
  const mount = await mountedImages(t, { base: MiB });
  await mount.write('child', 'base', 'clone');
  await mount.write(`${2 * MiB}`, 'child', 'resize');
  t.is(await sizeOf(mount, 'base'), MiB);
  await mount.write('done', 'child', 'commit');
  t.is(await sizeOf(mount, 'base'), 2 * MiB);
});

test.serial(
  'after an fsync through the mount, the disk use and the time are those of the image file',
  async (t) => {
    const mount = await mountedImages(t, { vm1: 64 * MiB });
    const file = await open(mount.file('vm1'), 'r+');
    for (let at = 0; at < 16; ++at) {
      await file.write(Buffer.alloc(4096, 1), 0, 4096, at * 2 * MiB);
      await sizeOf(mount, 'vm1');
      await file.sync();
      const [flat, image] = [await stat(mount.file('vm1')), await stat(mount.image('vm1'))];
      t.is(flat.blocks, image.blocks);
      t.is(flat.mtimeMs, image.mtimeMs);
    }
    await file.close();
  },
);

test.serial('changes by other processes in the image directory become visible', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: 2 * MiB, vm3: 3 * MiB });
  const shows = async (
    name: string,
    shown: (file: Awaited<ReturnType<typeof stat>>) => boolean,
  ) => {
    await eventually(async () => shown(await stat(mount.file(name))));
    // Now the kernel has attributes that the next change must make invalid.
    await sizeOf(mount, name);
  };
  const isGone = (name: string) =>
    eventually(() =>
      stat(mount.file(name)).then(
        () => false,
        () => true,
      ),
    );
  for (const name of ['vm1', 'vm2', 'vm3']) await sizeOf(mount, name);
  await chmod(mount.image('vm1'), 0o640);
  await shows('vm1', ({ mode }) => (Number(mode) & 0o777) === 0o640);
  await utimes(mount.image('vm1'), 1000, 2000);
  await shows('vm1', ({ mtimeMs }) => mtimeMs === 2_000_000);
  const directoryMode = (await stat(mount.point)).mode;
  await chmod(mount.images, 0o750);
  await eventually(async () => (await stat(mount.point)).mode !== directoryMode);
  await rename(mount.image('vm2'), mount.image('vm1'));
  await shows('vm1', ({ size }) => size === 2 * MiB);
  await isGone('vm2');
  await rename(mount.image('vm3'), mount.image('vm2'));
  await shows('vm2', ({ size }) => size === 3 * MiB);
  await isGone('vm3');
  await rm(mount.image('vm2'));
  await isGone('vm2');
  await Image.create(mount.image('vm2'), { size: 4 * MiB });
  await shows('vm2', ({ size }) => size === 4 * MiB);
  t.deepEqual(await readdir(mount.point), ['vm1', 'vm2']);
});

/** With this flag the kernel opens a name that it keeps without asking the mount. */
const O_PATH = 0o10000000;

test.serial('the kernel does not keep names that are gone', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB, vm3: MiB });
  const isKept = async (name: string) => {
    try {
      await (await open(mount.file(name), O_PATH)).close();
      return true;
    } catch (error) {
      t.is((error as NodeJS.ErrnoException).code, 'ENOENT');
      return false;
    }
  };
  for (const name of ['vm1', 'vm2', 'vm3']) await sizeOf(mount, name);
  await rm(mount.image('vm1'));
  await eventually(async () => !(await isKept('vm1')));
  await rename(mount.image('vm2'), mount.image('vm4'));
  await eventually(async () => !(await isKept('vm2')));
  await mount.write('vm3', 'vm3', 'remove');
  await eventually(async () => !(await isKept('vm3')));
  t.true(await isKept('vm4'));
});

test.serial(
  'the changes of another writer of an image are visible before it closes the image',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await sizeOf(mount, 'vm1');
    const image = await Image.open(mount.image('vm1'), { write: true });
    try {
      for (const size of [2 * MiB, 3 * MiB]) {
        await image.resize(size);
        await eventually(async () => (await sizeOf(mount, 'vm1')) === size);
        t.pass();
      }
    } finally {
      await image.close();
    }
  },
);

test.serial(
  'a file that has just been opened has the present attributes, even before inotify reports a change',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB, other: 2 * MiB });
    await mount.mount();
    for (let round = 0; round < 20; ++round) {
      await sizeOf(mount, 'vm1');
      const size = (await sizeOf(mount, 'other')) === MiB ? MiB : 2 * MiB;
      await rename(mount.image('other'), mount.image('third'));
      await rename(mount.image('vm1'), mount.image('other'));
      await rename(mount.image('third'), mount.image('vm1'));
      const file = await open(mount.file('vm1'));
      t.is((await file.stat()).size, size);
      await file.close();
      await eventually(async () => (await sizeOf(mount, 'other')) !== size);
    }
  },
);

test.serial('the attributes of files that have other names are not kept', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  const outside = path.join(mount.scratch, 'linked');
  await Image.create(outside, { size: MiB });
  await link(outside, mount.image('hard'));
  await symlink('vm1.pcow', mount.image('soft'));
  await mount.mount();
  for (const [name, file] of [
    ['hard', outside],
    ['soft', mount.image('vm1')],
  ] as const) {
    await sizeOf(mount, name);
    await utimes(file, 1000, 2000);
    t.is((await stat(mount.file(name))).mtimeMs, 2_000_000);
  }
});

test.serial('the times of an image that a monitor writes are not kept', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await sizeOf(mount, 'vm1');
  const monitor = await Conversation.start(
    t,
    await program('fake-monitor', mount.scratch),
    mount.file('vm1'),
  );
  t.is(await monitor.ask('attach w'), `attached ${mount.image('vm1')}`);
  const writer = await Conversation.start(t, 'python3', '-c', STORES, mount.image('vm1'));
  for (let round = 0; round < 5; ++round) {
    await sizeOf(mount, 'vm1');
    t.is(await moveTime(mount.image('vm1'), writer), await modified(mount.file('vm1')));
  }
});
