/**
 * A disk that becomes full in the middle of a write, a snapshot, a merge: PCOW_NO_SPACE, nothing is
 * lost, and with free space the work continues.
 */
import { execFile } from 'node:child_process';
import { mkdir, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image, PcowError } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const MiB = 1 << 20;
const BLOCK = 65536;

/** A filesystem of `size` bytes for one test. */
async function smallDisk(t: ExecutionContext, size: number): Promise<string> {
  const disk = path.join(await scratchDirectory(t), 'disk');
  await mkdir(disk);
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'pcow-test', disk]);
  t.teardown(() => run('umount', ['-l', disk]));
  return disk;
}

async function freeSpace(disk: string): Promise<number> {
  const { bavail, bsize } = await statfs(disk);
  return bavail * bsize;
}

/** Fills the disk except for `left` bytes. */
async function fill(disk: string, left: number, name = 'filler'): Promise<void> {
  await writeFile(path.join(disk, name), Buffer.alloc((await freeSpace(disk)) - left, 1));
}

/** Every byte of each of the first `count` blocks has the value of the function. */
async function check(
  t: ExecutionContext,
  image: Image,
  count: number,
  valueOf: (block: number) => number,
) {
  const bytes = Buffer.alloc(BLOCK);
  for (let block = 0; block < count; ++block) {
    await image.read(bytes, block * BLOCK);
    if (!bytes.equals(Buffer.alloc(BLOCK, valueOf(block)))) t.fail(`block ${block} is wrong`);
  }
}

test('a write', async (t) => {
  const disk = await smallDisk(t, 4 * MiB);
  const file = path.join(disk, 'a.pcow');
  await Image.create(file, { size: 16 * MiB });
  const image = await Image.open(file, { write: true });
  let written = 0;
  const error = await t.throwsAsync(
    async () => {
      for (; written < 256; ++written)
        await image.write(Buffer.alloc(BLOCK, written + 1), written * BLOCK);
    },
    { instanceOf: PcowError, code: 'PCOW_NO_SPACE', message: /a\.pcow/ },
  );
  t.is(error.errnoName, 'ENOSPC');
  t.true(written > 40 && written < 64, `${written} blocks were written`);
  t.regex(image.info().lastError?.error.message ?? '', /space/i);
  await check(t, image, written, (block) => block + 1);

  // Discarded space can be written again, without a sync in between by the user.
  await image.discard(0, 8 * BLOCK);
  await image.write(Buffer.alloc(4 * BLOCK, 200), 100 * BLOCK);
  await image.sync();
  await image.close();
  const again = await Image.open(file, { write: true });
  await check(t, again, written, (block) => (block < 8 ? 0 : block + 1));
  await again.close();
});

test('a snapshot', async (t) => {
  const disk = await smallDisk(t, 4 * MiB);
  const file = path.join(disk, 'a.pcow');
  await Image.create(file, { size: 16 * MiB });
  const image = await Image.open(file, { write: true });
  for (let block = 0; block < 16; ++block)
    await image.write(Buffer.alloc(BLOCK, block + 1), block * BLOCK);
  await image.sync();
  await fill(disk, 0);
  await t.throwsAsync(image.snapshot('s'), {
    instanceOf: PcowError,
    code: 'PCOW_NO_SPACE',
    message: /a\.pcow/,
  });
  t.deepEqual(image.snapshotNames(), []);
  // Allocated blocks need no more space.
  await image.write(Buffer.alloc(BLOCK, 99), 0);
  await image.sync();
  await check(t, image, 16, (block) => (block === 0 ? 99 : block + 1));
  await rm(path.join(disk, 'filler'));
  await image.snapshot('s');
  await image.close();
  const again = await Image.open(file);
  t.deepEqual(again.snapshotNames(), ['s']);
  await check(t, again, 16, (block) => (block === 0 ? 99 : block + 1));
  await again.close();
});

for (const atRest of [false, true]) {
  test(`a deletion, a rollback: ${atRest ? 'of an image at rest' : 'of an open image'}`, async (t) => {
    const disk = await smallDisk(t, 16 * MiB);
    const file = path.join(disk, 'a.pcow');
    await Image.create(file, { size: 16 * MiB });
    let image = await Image.open(file, { write: true });
    const count = 32;
    // Each block is complete in the lower layer and has one sub-block in the upper one, so the
    // merge copies.
    for (let block = 0; block < count; ++block)
      await image.write(Buffer.alloc(BLOCK, 1), block * BLOCK);
    await image.snapshot('lower');
    for (let block = 0; block < count; ++block)
      await image.write(Buffer.alloc(4096, 2), block * BLOCK);
    await image.snapshot('upper');
    const expected = Buffer.alloc(BLOCK, 1).fill(2, 0, 4096);
    const intact = async (opened: Image) => {
      const bytes = Buffer.alloc(BLOCK);
      for (let block = 0; block < count; ++block) {
        await opened.read(bytes, block * BLOCK);
        if (!bytes.equals(expected)) t.fail(`block ${block} is wrong`);
      }
    };
    // The guest continues until no space is left.
    await fill(disk, 20 * BLOCK);
    const more = async () => {
      for (let block = count; block < 256; ++block)
        await image.write(Buffer.alloc(BLOCK, 3), block * BLOCK);
    };
    await t.throwsAsync(more(), { code: 'PCOW_NO_SPACE' });
    if (atRest) await image.close();
    await fill(disk, 0, 'more');
    if (atRest) image = await Image.open(file, { write: true });
    await image.rollback('upper');
    await intact(image);
    await image.delete('lower');
    t.deepEqual(image.snapshotNames(), ['upper']);
    await intact(image);
    for (let sync = 0; sync < 2; ++sync) await image.sync();
    t.true((await freeSpace(disk)) > 16 * BLOCK);
    await image.write(Buffer.alloc(BLOCK, 4), 100 * BLOCK);
    await image.close();
    const again = await Image.open(file, { write: true });
    t.like(again.snapshots(), [{ name: 'upper', parent: null, data: count * BLOCK }]);
    await again.delete('upper');
    await intact(again);
    await again.close();
  });
}
