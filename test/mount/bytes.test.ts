/** The bytes of flat files, and the programs that users run on them. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

const run = promisify(execFile);

/** The content of an image that is not mounted, read by the engine. */
async function contentOf(mount: TestMount, name: string): Promise<Buffer> {
  const image = await Image.open(mount.image(name));
  const bytes = Buffer.alloc(image.info().size);
  await image.read(bytes, 0);
  await image.close();
  return bytes;
}

test.serial('writes to the flat file are in the image, and vice versa', async (t) => {
  const mount = await imagesFor(t, { vm1: 4 * MiB });
  const image = await Image.open(mount.image('vm1'), { write: true });
  const before = randomBytes(MiB);
  await image.write(before, 12345);
  await image.close();
  await mount.mount();
  const wanted = Buffer.alloc(4 * MiB);
  before.copy(wanted, 12345);
  t.true(wanted.equals(await readFile(mount.file('vm1'))));
  const file = await open(mount.file('vm1'), 'r+');
  for (const [offset, length] of [
    [0, 1],
    [4095, 2],
    [65_535, 65_538],
    [4 * MiB - 1, 1],
    [MiB, 2 * MiB],
  ] as const) {
    const bytes = randomBytes(length);
    await file.write(bytes, 0, length, offset);
    bytes.copy(wanted, offset);
  }
  await file.close();
  t.true(wanted.equals(await readFile(mount.file('vm1'))));
  await mount.unmount();
  t.true(wanted.equals(await contentOf(mount, 'vm1')));
  const reopened = await Image.open(mount.image('vm1'));
  t.true(reopened.info().clean);
  await reopened.close();
});

test.serial('a shared writable mapping, write(2) and fallocate see each other', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const tool = await Conversation.start(
    t,
    await program('map-tool', mount.scratch),
    mount.file('vm1'),
  );
  await tool.ask('write 4000 200 5');
  const file = await open(mount.file('vm1'), 'r+');
  const seen = Buffer.alloc(3);
  await file.read(seen, 0, 3, 4199 - 2);
  t.deepEqual([...seen], [5, 5, 5]);
  await file.write(Buffer.of(9), 0, 1, 4100);
  t.is(await tool.ask('read 4100'), '9');
  t.is(await tool.ask('sync'), 'ok');
  t.is(await tool.ask('punch 4096 4096'), 'ok');
  t.is(await tool.ask('read 4100'), '0');
  t.is(await tool.ask('read 4095'), '5');
  await file.close();
  await tool.end();
  await mount.unmount();
  const bytes = await contentOf(mount, 'vm1');
  t.deepEqual([bytes[3999], bytes[4000], bytes[4095], bytes[4096], bytes[4199]], [0, 5, 5, 0, 0]);
});

test.serial(
  'O_TRUNC neither fails nor truncates; another size is refused, and the error names the command',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await writeFile(mount.file('vm1'), 'content', { flag: 'r+' });
    await (await open(mount.file('vm1'), 'w')).close();
    t.is((await stat(mount.file('vm1'))).size, MiB);
    t.is((await readFile(mount.file('vm1'))).toString('latin1', 0, 7), 'content');
    await truncate(mount.file('vm1'), MiB);
    for (const size of [0, MiB - 1, 2 * MiB]) {
      const file = await open(mount.file('vm1'), 'r+');
      await t.throwsAsync(file.truncate(size), { code: 'EPERM' }, String(size));
      await file.close();
      t.regex((await mount.status('vm1')).lastError?.message ?? '', /pcow resize/);
    }
    t.is((await stat(mount.file('vm1'))).size, MiB);
  },
);

test.serial('writing past the end is an error and changes nothing', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const file = await open(mount.file('vm1'), 'r+');
  const error = await t.throwsAsync<NodeJS.ErrnoException>(
    file.write(Buffer.alloc(4096), 0, 4096, MiB),
  );
  t.true(['EFBIG', 'ENOSPC', 'EINVAL'].includes(error?.code ?? ''), error?.code);
  await file.close();
  t.is((await stat(mount.file('vm1'))).size, MiB);
});

test.serial('a filesystem on a loop device, with discard', async (t) => {
  const mount = await mountedImages(t, { vm1: 64 * MiB });
  const point = path.join(mount.scratch, 'loop');
  await mkdir(point);
  t.teardown(() => run('umount', ['-l', point]).catch(() => undefined));
  await run('mkfs.ext4', ['-q', mount.file('vm1')]);
  await run('mount', ['-o', 'loop,discard', mount.file('vm1'), point]);
  const data = randomBytes(20 * MiB);
  await writeFile(path.join(point, 'data'), data);
  await run('sync', ['-f', point]);
  const full = (await stat(mount.image('vm1'))).blocks;
  await mount.write('full', 'vm1', 'snapshot');
  await run('rm', [path.join(point, 'data')]);
  await run('sync', ['-f', point]);
  await run('fstrim', [point]);
  await run('umount', [point]);
  await run('fsck.ext4', ['-fn', mount.file('vm1')]);
  // The snapshot is a filesystem, too, as after a power cut; it still has the file.
  await mount.write('old full', 'vm1', 'clone');
  await run('mount', ['-o', 'loop', mount.file('old'), point]);
  t.true(data.equals(await readFile(path.join(point, 'data'))));
  await run('umount', [point]);
  // Without the snapshot the discarded blocks are given back to the disk.
  await mount.write('old', 'old', 'remove');
  await mount.write('full', 'vm1', 'delete');
  await mount.unmount();
  const left = (await stat(mount.image('vm1'))).blocks;
  t.true(
    left < full - (15 * MiB) / 512,
    `${full} blocks when it was full, ${left} after the discard`,
  );
});

test.serial('cp --sparse, both ways', async (t) => {
  const mount = await mountedImages(t, { vm1: 16 * MiB });
  const raw = path.join(mount.scratch, 'raw');
  const file = await open(raw, 'w');
  await file.write(randomBytes(MiB), 0, MiB, 3 * MiB);
  await file.truncate(16 * MiB);
  await file.close();
  await run('cp', ['--sparse=always', raw, mount.file('vm1')]);
  await run('cmp', [raw, mount.file('vm1')]);
  t.true((await stat(mount.image('vm1'))).blocks * 512 < 3 * MiB, 'holes stay holes');
  const back = path.join(mount.scratch, 'back');
  await run('cp', ['--sparse=always', mount.file('vm1'), back]);
  await run('cmp', [raw, back]);
  t.true((await stat(back)).blocks * 512 < 3 * MiB);
  // Over an image that already has other data.
  await run('dd', [
    'if=/dev/urandom',
    `of=${mount.file('vm1')}`,
    'bs=1M',
    'count=16',
    'conv=notrunc',
  ]);
  await run('cp', ['--sparse=always', raw, mount.file('vm1')]);
  await run('cmp', [raw, mount.file('vm1')]);
});

test.serial('dd, with and without notrunc, and with direct I/O', async (t) => {
  const mount = await mountedImages(t, { vm1: 4 * MiB });
  const raw = path.join(mount.scratch, 'raw');
  const bytes = randomBytes(4 * MiB);
  await writeFile(raw, bytes);
  for (const words of [['conv=notrunc'], [], ['oflag=direct'], ['conv=fsync,notrunc']]) {
    await run('dd', [`if=${raw}`, `of=${mount.file('vm1')}`, 'bs=64k', ...words]);
    await run('cmp', [raw, mount.file('vm1')]);
  }
  const { stdout } = await run(
    'dd',
    [`if=${mount.file('vm1')}`, 'bs=4k', 'count=1', 'iflag=direct'],
    {
      encoding: 'buffer',
    },
  );
  t.true(bytes.subarray(0, 4096).equals(stdout));
});

test.serial('qemu-img convert and compare, onto and from a flat file', async (t) => {
  const mount = await mountedImages(t, { vm1: 16 * MiB });
  const raw = path.join(mount.scratch, 'raw');
  const qcow2 = path.join(mount.scratch, 'disk.qcow2');
  const file = await open(raw, 'w');
  await file.write(randomBytes(2 * MiB), 0, 2 * MiB, 5 * MiB);
  await file.truncate(16 * MiB);
  await file.close();
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2]);
  await run('dd', [
    'if=/dev/urandom',
    `of=${mount.file('vm1')}`,
    'bs=1M',
    'count=16',
    'conv=notrunc',
  ]);
  await run('qemu-img', ['convert', '-n', '-O', 'raw', qcow2, mount.file('vm1')]);
  await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', qcow2, mount.file('vm1')]);
  await run('cmp', [raw, mount.file('vm1')]);
  const back = path.join(mount.scratch, 'back.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', mount.file('vm1'), back]);
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', raw, back]);
  await mount.write('s', 'vm1', 'snapshot');
  await run('qemu-img', [
    'compare',
    '-f',
    'raw',
    '-F',
    'raw',
    raw,
    mount.control('vm1', 'at', 's'),
  ]);
  t.pass();
});

test.serial('many files open at once, each with its own bytes', async (t) => {
  const mount = await mountedImages(t, { a: MiB, b: MiB, c: MiB });
  await Promise.all(
    ['a', 'b', 'c'].flatMap((name, i) =>
      Array.from({ length: 16 }, async (_, k) => {
        const file = await open(mount.file(name), constants.O_RDWR);
        await file.write(Buffer.alloc(4096, 1 + i * 16 + k), 0, 4096, k * 65_536);
        await file.close();
      }),
    ),
  );
  for (const [i, name] of ['a', 'b', 'c'].entries()) {
    const bytes = await readFile(mount.file(name));
    for (let k = 0; k < 16; ++k) t.is(bytes[k * 65_536 + 4095], 1 + i * 16 + k);
  }
  t.deepEqual((await mount.status('a')).open, { reading: 0, writing: 0, snapshots: 0 });
});
