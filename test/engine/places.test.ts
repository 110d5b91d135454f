/**
 * A filesystem that lacks what images need is refused by what makes images there, and by what
 * mounts it.
 */
import { execFile } from 'node:child_process';
import { mkdir, readdir, statfs } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { checkPlace, Image, isInPersistentMemory } from '../../src/engine/index.js';
import { fails, pcowIn, succeeds } from '../cli/outcome.js';
import { mountDisk } from '../helpers/small-disk.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);

test('a directory on an ordinary disk has all that images need, and keeps nothing of the trial', async (t) => {
  const scratch = await scratchDirectory(t);
  await checkPlace(scratch);
  t.deepEqual(await readdir(scratch), []);
});

test('no file on a disk is in persistent memory', async (t) => {
  const file = path.join(await scratchDirectory(t), 'vm1.pcow');
  await Image.create(file, { size: 2 ** 20 });
  t.false(await isInPersistentMemory(file));
  await t.throwsAsync(isInPersistentMemory(`${file}-not`), { code: 'PCOW_NOT_FOUND' });
});

test('a filesystem that cannot reserve space: create, convert, mount and doctor say so', async (t) => {
  const scratch = await scratchDirectory(t);
  const { directory } = await mountDisk(t, scratch, 'ext2', 64 * 2 ** 20);
  const before = (await statfs(directory)).bavail;
  const pcow = pcowIn(scratch);
  const lack =
    /the filesystem there cannot reserve space, and an image needs that: use ext4 or XFS/;
  await fails(t, pcow('create', 'mnt/vm1', '1M'), 3, lack);
  await run('truncate', ['-s', '1M', path.join(scratch, 'raw')]);
  await fails(t, pcow('convert', '-f', 'raw', 'raw', 'mnt/vm1.pcow'), 3, lack);
  await mkdir(path.join(scratch, 'point'));
  await fails(t, pcow('mount', 'mnt', 'point'), 11, lack);
  const { stdout } = await pcow('doctor', 'mnt');
  t.regex(stdout, /problem +an image can't be made in \S*mnt: .*cannot reserve space/);
  t.deepEqual(await readdir(directory), ['lost+found']);
  t.is((await statfs(directory)).bavail, before);
  await succeeds(t, pcow('create', 'vm1', '1M'));
});
