/**
 * Images and their bases: a base can still be used and changed, and never harms the images that
 * stand on it.
 */
import { mkdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds } from './outcome.js';

const SIZE = 2 ** 20;

async function write(file: string, byte: number): Promise<void> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(SIZE / 2, byte), SIZE / 4);
  await image.close();
}

async function content(file: string): Promise<Buffer> {
  const image = await Image.open(file);
  const buffer = Buffer.alloc(SIZE);
  await image.read(buffer, 0);
  await image.close();
  return buffer;
}

test('a base whose active layer is written after a clone never changes the clone', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const base = path.join(directory, 'base.pcow');
  const clone = path.join(directory, 'clone.pcow');
  await succeeds(t, pcow('create', 'base', '1M'));
  await write(base, 1);
  await succeeds(t, pcow('clone', 'base', 'clone'));
  const before = await content(clone);
  t.true(before.includes(1));
  await write(base, 2);
  t.deepEqual(await content(clone), before);
  await succeeds(t, pcow('snapshot', 'base@later'));
  await write(base, 3);
  const [auto] = /auto-\S+/.exec(await succeeds(t, pcow('list', 'base'))) ?? [];
  await succeeds(t, pcow('rollback', `base@${auto ?? ''}`));
  await write(base, 4);
  await succeeds(t, pcow('delete', 'base@later'));
  t.deepEqual(await content(clone), before);
});

test('a second clone of an unchanged base needs no second freeze', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await succeeds(t, pcow('create', 'base', '1M'));
  await succeeds(t, pcow('snapshot', 'base@one'));
  await succeeds(t, pcow('clone', 'base', 'clone1'));
  await succeeds(t, pcow('clone', 'base', 'clone2'));
  t.notRegex(await succeeds(t, pcow('list', 'base')), /auto-/);
  t.regex(await succeeds(t, pcow('info', 'clone2')), /^base +base\.pcow@one$/m);
});

test('the snapshot that a clone stands on cannot be deleted while the clone exists', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'base', '1M'));
  await succeeds(t, pcow('snapshot', 'base@one'));
  await succeeds(t, pcow('snapshot', 'base@two'));
  await succeeds(t, pcow('clone', 'base@one', 'clone1'));
  await succeeds(t, pcow('clone', 'base@one', 'clone2'));
  await fails(
    t,
    pcow('delete', 'base@one'),
    6,
    /base@one can't be deleted: clone1\.pcow, clone2\.pcow stand on it/,
  );
  await succeeds(t, pcow('delete', 'base@two'));
  await rm(path.join(directory, 'clone1.pcow'));
  await fails(t, pcow('delete', 'base@one'), 6, /clone2\.pcow stands on it/);
  await rm(path.join(directory, 'clone2.pcow'));
  await succeeds(t, pcow('delete', 'base@one'));
});

test('a directory of images can be moved as a whole', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await mkdir(path.join(directory, 'here'));
  await succeeds(t, pcow('create', 'here/base', '1M'));
  await succeeds(t, pcow('clone', 'here/base', 'here/clone'));
  await rename(path.join(directory, 'here'), path.join(directory, 'there'));
  t.regex(await succeeds(t, pcow('info', 'there/clone')), /^base +base\.pcow/m);
});

test('an image may be larger than its base, but not smaller, and has the same block size', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const base = path.join(directory, 'base.pcow');
  await succeeds(t, pcow('create', 'base', '1M', '--block-size', '16K'));
  await write(base, 5);
  await fails(
    t,
    pcow('create', 'vm1', '512K', '--base', 'base'),
    3,
    /524288 is smaller than the base base/,
  );
  await fails(
    t,
    pcow('create', 'vm1', '--base', 'base', '--block-size', '64K'),
    3,
    /blocks of 16 KiB.*not 64 KiB/,
  );
  t.regex(
    await succeeds(t, pcow('list', 'base')),
    /no snapshots/,
    'nothing was frozen for nothing',
  );
  await succeeds(t, pcow('create', 'vm1', '2M', '--base', 'base', '--block-size', '16K'));
  t.deepEqual(await content(path.join(directory, 'vm1.pcow')), await content(base));
  t.regex(await succeeds(t, pcow('info', 'vm1')), /^size +2 MiB/m);
  await succeeds(t, pcow('create', 'large', '3M', '--block-size', '16K'));
  const larger =
    /large\.pcow \(3145728 bytes\) is larger than \S*vm1\.pcow \(2097152 bytes\): a base cannot be larger than the image/;
  await fails(t, pcow('rebase', 'vm1', '--base', 'large'), 3, larger);
});
