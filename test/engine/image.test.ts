/** The methods of Image on real files: each does what its comment says. */
import { stat, writeFile } from 'node:fs/promises';
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { type CreateOptions, Image, snapshotTogether } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

const MiB = 1 << 20;

async function created(
  t: ExecutionContext,
  options: CreateOptions = { size: MiB },
): Promise<string> {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, options);
  return file;
}

async function opened(t: ExecutionContext, options?: CreateOptions): Promise<Image> {
  const image = await Image.open(await created(t, options), { write: true });
  t.teardown(() => image.close());
  return image;
}

async function contents(
  image: Image,
  offset: number,
  length: number,
  snapshot?: string,
): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xaa);
  return buffer.subarray(0, await image.read(buffer, offset, snapshot));
}

test('a new image is described by info', async (t) => {
  const file = await created(t);
  const image = await Image.open(file);
  const info = image.info();
  t.like(info, {
    path: file,
    formatVersion: 1,
    size: MiB,
    blockSize: 65536,
    subBlockSize: 4096,
    clean: true,
    writable: false,
    snapshots: 0,
    base: null,
    holder: null,
    lastError: null,
  });
  t.regex(info.uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  t.deepEqual(info.chain, [{ path: file, snapshot: null, layer: 1 }]);
  const { size, blocks } = await stat(file);
  t.is(info.fileSize, size);
  t.is(info.diskUse, blocks * 512);
  t.true(info.diskUse < MiB);
  t.deepEqual(image.snapshots(), []);
  await image.close();
});

test('every process sees the writer as the holder', async (t) => {
  const writer = await opened(t);
  t.true(writer.info().writable);
  const reader = await Image.open(writer.info().path);
  t.is(reader.info().holder?.pid, process.pid);
  t.false(reader.info().clean);
  await reader.close();
});

test('written data is read back, also after closing and opening', async (t) => {
  const image = await opened(t);
  t.is(await image.write(Buffer.from('hello'), 100_000), 5);
  t.deepEqual(await contents(image, 99_999, 7), Buffer.from('\0hello\0'));
  await image.sync();
  const file = image.info().path;
  await image.close();
  const again = await Image.open(file);
  t.deepEqual(await contents(again, 100_000, 5), Buffer.from('hello'));
  await again.close();
});

test('a read is short only at the end of the image', async (t) => {
  const image = await opened(t);
  t.is(await image.read(Buffer.alloc(8192), MiB - 4096), 4096);
  t.is(await image.read(Buffer.alloc(10), MiB), 0);
  t.is(await image.read(Buffer.alloc(0), 0), 0);
});

test('a view into a larger buffer is read and written within its bounds', async (t) => {
  const image = await opened(t);
  const large = Buffer.alloc(30, 1);
  await image.write(large.subarray(10, 20).fill(2), 0);
  t.deepEqual(await contents(image, 0, 12), Buffer.concat([Buffer.alloc(10, 2), Buffer.alloc(2)]));
  await image.read(large.subarray(20, 25), 8);
  t.deepEqual([...large.subarray(18)], [2, 2, 2, 2, 0, 0, 0, 1, 1, 1, 1, 1]);
});

test('a discarded range reads as zeros and gives its blocks back', async (t) => {
  const image = await opened(t);
  await image.write(Buffer.alloc(MiB, 7), 0);
  await image.sync();
  const before = image.info().diskUse;
  await image.discard(65536 + 10, MiB - 65536 - 20);
  t.deepEqual(
    await contents(image, 65536, 20),
    Buffer.concat([Buffer.alloc(10, 7), Buffer.alloc(10)]),
  );
  t.deepEqual(
    await contents(image, MiB - 20, 20),
    Buffer.concat([Buffer.alloc(10), Buffer.alloc(10, 7)]),
  );
  await image.sync();
  t.true(image.info().diskUse <= before - 13 * 65536);
});

test('snapshots: listed oldest first, read by name, rolled back to, deleted', async (t) => {
  const image = await opened(t);
  const earliest = Date.now();
  await image.write(Buffer.alloc(65536, 1), 0);
  await image.snapshot('one');
  await image.write(Buffer.from([2]), 0);
  await image.snapshot('two');
  await image.write(Buffer.from([3]), 0);
  const [one, two, ...rest] = image.snapshots();
  t.is(rest.length, 0);
  t.like(one, {
    name: 'one',
    parent: null,
    size: MiB,
    children: 1,
    automatic: false,
    current: false,
    data: 65536,
  });
  t.like(two, {
    name: 'two',
    parent: 'one',
    size: MiB,
    children: 1,
    automatic: false,
    current: true,
    data: 4096,
  });
  for (const snapshot of [one, two]) {
    const created = snapshot?.created.getTime() ?? 0;
    t.true(created >= earliest - 1 && created <= Date.now());
  }
  t.deepEqual(image.snapshotNames(), ['one', 'two']);
  t.true(image.layerOf('two') === two?.id);
  t.is(image.info().snapshots, 2);
  t.deepEqual([...(await contents(image, 0, 2, 'one'))], [1, 1]);
  t.deepEqual([...(await contents(image, 0, 2, 'two'))], [2, 1]);
  t.deepEqual([...(await contents(image, 0, 2))], [3, 1]);

  await image.rollback('one');
  t.deepEqual([...(await contents(image, 0, 2))], [1, 1]);
  await image.delete('one');
  t.deepEqual(image.snapshotNames(), ['two']);
  t.deepEqual([...(await contents(image, 0, 2))], [1, 1]);
  t.deepEqual([...(await contents(image, 0, 2, 'two'))], [2, 1]);
});

test('resize grows with zeros, keeps the size of snapshots, and refuses to shrink', async (t) => {
  const image = await opened(t);
  await image.snapshot('small');
  await image.resize(2 * MiB);
  t.is(image.info().size, 2 * MiB);
  t.deepEqual(await contents(image, 2 * MiB - 4, 8), Buffer.alloc(4));
  t.is(image.snapshots()[0]?.size, MiB);
  t.is(await image.read(Buffer.alloc(10), MiB, 'small'), 0);
  await t.throwsAsync(image.resize(MiB), { code: 'PCOW_INVALID', message: /disk\.pcow/ });
});

test('a clone stands on a frozen layer, and neither image sees the writes of the other', async (t) => {
  const image = await opened(t);
  const file = image.info().path;
  const directory = path.dirname(file);
  await image.write(Buffer.from('base'), 0);
  const layer = await image.freezeForClone('for-clone');
  t.is(await image.freezeForClone('not-needed'), layer);
  t.like(image.snapshots()[0], { name: 'for-clone', automatic: true, id: layer });
  t.is(image.snapshots().length, 1);

  const cloneFile = path.join(directory, 'clone.pcow');
  await Image.create(cloneFile, { base: { path: file, layer } });
  const clone = await Image.open(cloneFile, { write: true, baseRoot: directory });
  t.like(clone.info(), { size: MiB, blockSize: 65536 });
  t.deepEqual(clone.info().base, {
    path: 'disk.pcow',
    resolved: file,
    uuid: image.info().uuid,
    layer,
    snapshot: 'for-clone',
  });
  t.deepEqual(clone.info().chain, [
    { path: cloneFile, snapshot: null, layer: 1 },
    { path: file, snapshot: 'for-clone', layer },
  ]);
  await clone.write(Buffer.from('C'), 0);
  await image.write(Buffer.from('I'), 1);
  t.is((await contents(clone, 0, 4)).toString(), 'Case');
  t.is((await contents(image, 0, 4)).toString(), 'bIse');
  await clone.setBase(null);
  t.is(clone.info().base, null);
  await clone.close();
});

test('snapshotTogether takes one snapshot of each', async (t) => {
  const images = [await opened(t), await opened(t), await opened(t)];
  for (const [i, image] of images.entries()) await image.write(Buffer.from([i + 1]), 0);
  await snapshotTogether('all', images);
  for (const [i, image] of images.entries()) {
    await image.write(Buffer.from([9]), 0);
    t.deepEqual([...(await contents(image, 0, 1, 'all'))], [i + 1]);
  }
});

test('force replaces an existing file', async (t) => {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await writeFile(file, 'something precious');
  await t.throwsAsync(Image.create(file, { size: MiB }), {
    code: 'PCOW_EXISTS',
    message: /disk\.pcow/,
  });
  await Image.create(file, { size: MiB, force: true });
  const image = await Image.open(file);
  t.is(image.info().size, MiB);
  await image.close();
});

test('info contains the last error', async (t) => {
  const image = await opened(t);
  await t.throwsAsync(image.rollback('nowhere'), { code: 'PCOW_NOT_FOUND' });
  t.regex(image.info().lastError?.error.message ?? '', /nowhere/);
});
