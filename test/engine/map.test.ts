/**
 * Image.map and Image.diff. native/test/model_test.cc tests that they are right after any sequence
 * of operations.
 */
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { type Extent, Image } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

const BLOCK = 65536;

async function opened(t: ExecutionContext, size: number): Promise<Image> {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, { size });
  const image = await Image.open(file, { write: true });
  t.teardown(() => image.close());
  return image;
}

async function listed(extents: AsyncIterable<Extent>) {
  const list: [number, number, string, string | null][] = [];
  for await (const { offset, length, kind, layer } of extents) {
    list.push([
      offset,
      length,
      kind,
      layer && `${path.basename(layer.path)}@${layer.snapshot ?? ''}`,
    ]);
  }
  return list;
}

test('data, zeros and holes are distinguished, with the layers that hold them', async (t) => {
  const image = await opened(t, 16 * BLOCK);
  await image.write(Buffer.alloc(2 * BLOCK, 1), 0);
  await image.snapshot('first');
  await image.write(Buffer.alloc(4096, 2), 4096);
  await image.discard(BLOCK, BLOCK);
  t.deepEqual(await listed(image.map()), [
    [0, 4096, 'data', 'disk.pcow@first'],
    [4096, 4096, 'data', 'disk.pcow@'],
    [8192, BLOCK - 8192, 'data', 'disk.pcow@first'],
    [BLOCK, BLOCK, 'zero', 'disk.pcow@'],
    [2 * BLOCK, 14 * BLOCK, 'hole', null],
  ]);
  t.deepEqual(await listed(image.map({ snapshot: 'first' })), [
    [0, 2 * BLOCK, 'data', 'disk.pcow@first'],
    [2 * BLOCK, 14 * BLOCK, 'hole', null],
  ]);
  t.deepEqual(await listed(image.map({ depths: { first: 0, end: 1 } })), [
    [0, 4096, 'hole', null],
    [4096, 4096, 'data', 'disk.pcow@'],
    [8192, BLOCK - 8192, 'hole', null],
    [BLOCK, BLOCK, 'zero', 'disk.pcow@'],
    [2 * BLOCK, 14 * BLOCK, 'hole', null],
  ]);
});

test('a diff lists the sub-blocks that were written or discarded, and nothing else', async (t) => {
  const image = await opened(t, 16 * BLOCK);
  await image.write(Buffer.alloc(4 * BLOCK, 1), 0);
  await image.snapshot('first');
  await image.write(Buffer.alloc(1, 2), 5000);
  await image.snapshot('second');
  await image.discard(2 * BLOCK, BLOCK);
  t.deepEqual(await listed(image.diff('first', 'second')), [
    [4096, 4096, 'data', 'disk.pcow@second'],
  ]);
  t.deepEqual(await listed(image.diff('second', null)), [[2 * BLOCK, BLOCK, 'zero', 'disk.pcow@']]);
  t.deepEqual(await listed(image.diff(null, 'first')), [
    [4096, 4096, 'data', 'disk.pcow@first'],
    [2 * BLOCK, BLOCK, 'data', 'disk.pcow@first'],
  ]);
  t.deepEqual(await listed(image.diff('second', 'second')), []);
});

test('a map continues through bases, and is joined across batches', async (t) => {
  const base = await opened(t, 2 ** 30);
  // More extents than fit into a batch.
  for (let block = 0; block < 5000; block += 2)
    await base.write(Buffer.alloc(4096, 1), block * BLOCK);
  await base.write(Buffer.alloc(64 * BLOCK, 2), 8192 * BLOCK);
  await base.snapshot('installed');
  const file = path.join(path.dirname(base.info().path), 'clone.pcow');
  await Image.create(file, { base: { path: base.info().path, snapshot: 'installed' } });
  const image = await Image.open(file);
  t.teardown(() => image.close());
  const extents = [];
  for await (const extent of image.map()) extents.push(extent);
  t.is(extents.length, 2 * 2500 + 2);
  t.is(
    extents.reduce((sum, { length }) => sum + length, 0),
    2 ** 30,
  );
  const data = extents.filter(({ kind }) => kind === 'data');
  t.true(data.every(({ depth, layer }) => depth === 1 && layer?.snapshot === 'installed'));
  t.like(data.at(-1), { offset: 8192 * BLOCK, length: 64 * BLOCK });
});

test('an empty image of 16 TiB is mapped quickly, also with layers', async (t) => {
  const image = await opened(t, 2 ** 44);
  await image.snapshot('first');
  await image.write(Buffer.alloc(4096, 1), 2 ** 43);
  t.deepEqual(await listed(image.map()), [
    [0, 2 ** 43, 'hole', null],
    [2 ** 43, 4096, 'data', 'disk.pcow@'],
    [2 ** 43 + 4096, 2 ** 43 - 4096, 'hole', null],
  ]);
  t.is((await image.native.map(0, '', 0, 9)).next, 2 ** 44, 'one batch is enough');
  t.deepEqual(await listed(image.diff('first', null)), [[2 ** 43, 4096, 'data', 'disk.pcow@']]);
});

test('an aborted signal ends a walk, with its reason', async (t) => {
  const image = await opened(t, 2 ** 30);
  const reason = new Error('enough');
  const error = await t.throwsAsync(listed(image.map({ signal: AbortSignal.abort(reason) })), {
    code: 'PCOW_CANCELLED',
  });
  t.is(error.cause, reason);
  await t.throwsAsync(listed(image.diff(null, null, { signal: AbortSignal.abort() })), {
    code: 'PCOW_CANCELLED',
  });
});

test('a layer that cannot be walked is refused with its name', async (t) => {
  const image = await opened(t, 2 ** 30);
  await t.throwsAsync(listed(image.map({ snapshot: 'none' })), {
    code: 'PCOW_NOT_FOUND',
    message: /named none/,
  });
  await t.throwsAsync(listed(image.diff('none', null)), {
    code: 'PCOW_NOT_FOUND',
    message: /named none/,
  });
  t.throws(() => image.map({ depths: { first: 2, end: 1 } }), {
    code: 'PCOW_INVALID',
    message: /before they begin/,
  });
});
