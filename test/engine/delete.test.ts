/** Deleting a snapshot with progress, and stopping it. */
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { Image, PcowError } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

const SIZE = 64 << 20;

/**
 * An image whose snapshot `old` has so much to merge into `new` that the merge can be stopped in
 * the middle.
 */
async function merging(t: ExecutionContext): Promise<Image> {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, { size: SIZE, blockSize: 65536 });
  const image = await Image.open(file, { write: true });
  t.teardown(() => image.close());
  for (let offset = 0; offset < SIZE; offset += 1 << 20)
    await image.write(Buffer.alloc(1 << 20, 1), offset);
  await image.snapshot('old');
  // One sub-block of each block: every block is then partial, and the merge must copy.
  for (let offset = 0; offset < SIZE; offset += 65536) await image.write(Buffer.from([2]), offset);
  await image.snapshot('new');
  return image;
}

async function intact(t: ExecutionContext, image: Image): Promise<void> {
  const bytes = Buffer.alloc(SIZE);
  await image.read(bytes, 0);
  const block = Buffer.alloc(65536, 1);
  block[0] = 2;
  let wrong = 0;
  for (let offset = 0; offset < SIZE; offset += 65536) {
    if (!bytes.subarray(offset, offset + 65536).equals(block)) ++wrong;
  }
  t.is(wrong, 0);
}

test('progress never goes back and ends at the total', async (t) => {
  const image = await merging(t);
  const reports: [number, number][] = [];
  await image.delete('old', { onProgress: (done, total) => reports.push([done, total]) });
  t.true(reports.length > 0);
  for (const [i, [done, total]] of reports.entries()) {
    t.true(done <= total && done >= (reports[i - 1]?.[0] ?? 0));
  }
  const [done, total] = reports.at(-1) ?? [0, 1];
  t.is(done, total);
  t.deepEqual(image.snapshotNames(), ['new']);
  await intact(t, image);
});

test('an aborted delete fails with PCOW_CANCELLED, does no harm, and is finished when the image is next opened', async (t) => {
  const image = await merging(t);
  const file = image.info().path;
  const controller = new AbortController();
  const reason = new Error('changed my mind');
  const work = image.delete('old', {
    signal: controller.signal,
    onProgress: () => {
      controller.abort(reason);
    },
  });
  const error = await t.throwsAsync(work, { instanceOf: PcowError, code: 'PCOW_CANCELLED' });
  t.is(error.cause, reason);
  t.deepEqual(image.snapshotNames(), ['new']);
  await intact(t, image);
  await image.close();
  const again = await Image.open(file, { write: true });
  t.like(again.snapshots()[0], { name: 'new', parent: null, data: SIZE });
  await intact(t, again);
  await again.close();
});

test('with a signal that is already aborted nothing begins', async (t) => {
  const image = await merging(t);
  await t.throwsAsync(image.delete('old', { signal: AbortSignal.abort() }), {
    code: 'PCOW_CANCELLED',
  });
  t.deepEqual(image.snapshotNames(), ['old', 'new']);
});

test('an onProgress that throws stops the delete, which fails with the thrown error', async (t) => {
  const image = await merging(t);
  const thrown = new Error('a bug of the caller');
  const work = image.delete('old', {
    onProgress: () => {
      throw thrown;
    },
  });
  t.is(await t.throwsAsync(work), thrown);
  await intact(t, image);
});

test('a close in the middle of a delete waits for it', async (t) => {
  const image = await merging(t);
  const file = image.info().path;
  const work = image.delete('old');
  await image.close();
  await work;
  const again = await Image.open(file);
  t.deepEqual(again.snapshotNames(), ['new']);
  await intact(t, again);
  await again.close();
});
