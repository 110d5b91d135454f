/** The commands of the original tool. */
import { rename } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { firstByte } from '../helpers/first-byte.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowImgIn, pcowIn, succeeds } from './outcome.js';

async function write(file: string, byte: number): Promise<void> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(4096, byte), 0);
  await image.close();
}

test('create takes KiB and GiB, and uses the name as given', async (t) => {
  const directory = await scratchDirectory(t);
  const img = pcowImgIn(directory);
  await succeeds(t, img('create', '64', '128', 'my_pcow_file.img'));
  const image = await Image.open(path.join(directory, 'my_pcow_file.img'));
  t.is(image.info().size, 128 * 2 ** 30);
  t.is(image.info().blockSize, 65536);
  await image.close();
  await succeeds(t, img('create', '64', '128', 'vm.img', 'my_pcow_file.img'));
  t.regex(await succeeds(t, img('info', 'vm.img')), /^base +my_pcow_file\.img$/m);
});

test('snapshots are numbered from 1, and rollback keeps the later ones', async (t) => {
  const directory = await scratchDirectory(t);
  const img = pcowImgIn(directory);
  const file = path.join(directory, 'vm.img');
  await succeeds(t, img('create', '4', '1', 'vm.img'));
  for (const byte of [1, 2, 3]) {
    await write(file, byte);
    t.regex(
      await succeeds(t, img('snapshot', 'vm.img')),
      new RegExp(`^snapshot ${byte} of vm\\.img taken`),
    );
  }
  await succeeds(t, img('rollback', 'vm.img', '1'));
  t.is(await firstByte(file), 1);
  await succeeds(t, img('rollback', 'vm.img', '3'));
  t.is(await firstByte(file), 3);
  const info = await succeeds(t, img('info', 'vm.img'));
  t.regex(info, /^snapshot 1 .*snapshot-1$/m);
  t.regex(info, /^snapshot 3 .*snapshot-3$/m);
  await succeeds(t, pcowIn(directory)('delete', 'vm.img@snapshot-1'));
  t.regex(
    await succeeds(t, img('snapshot', 'vm.img')),
    /^snapshot 3 of vm\.img taken \(snapshot-4\)/,
  );
});

test('rebase puts an image on another base', async (t) => {
  const directory = await scratchDirectory(t);
  const img = pcowImgIn(directory);
  for (const [name, byte] of [
    ['one.img', 1],
    ['two.img', 2],
  ] as const) {
    await succeeds(t, img('create', '64', '1', name));
    await write(path.join(directory, name), byte);
  }
  await succeeds(t, img('create', '64', '1', 'vm.img', 'one.img'));
  const file = path.join(directory, 'vm.img');
  t.is(await firstByte(file), 1);
  await succeeds(t, img('rebase', 'vm.img', 'two.img'));
  t.is(await firstByte(file), 2);
  await fails(t, img('rebase', 'vm.img', 'vm.img'), 10, /can't stand on itself/);
});

test('rebase after a base was moved keeps the content, even if the base was written', async (t) => {
  const directory = await scratchDirectory(t);
  const img = pcowImgIn(directory);
  const base = path.join(directory, 'base.img');
  const file = path.join(directory, 'vm.img');
  await succeeds(t, img('create', '64', '1', 'base.img'));
  await write(base, 1);
  await succeeds(t, img('create', '64', '1', 'vm.img', 'base.img'));
  await write(base, 2);
  await rename(base, path.join(directory, 'moved.img'));
  await fails(
    t,
    img('info', 'vm.img'),
    10,
    /base\.img, which does not exist/,
    /pcow rebase IMAGE --unsafe/,
  );
  await succeeds(t, img('rebase', 'vm.img', 'moved.img'));
  t.is(await firstByte(file), 1);
  t.regex(await succeeds(t, img('info', 'vm.img')), /^base +moved\.img$/m);
});

test('mistakes end with an exit code that is not 0', async (t) => {
  const directory = await scratchDirectory(t);
  const img = pcowImgIn(directory);
  await fails(t, img('create', '64', '0', 'vm.img'), 3, /the size is zero/);
  await fails(t, img('create', '64', '1G', 'vm.img'), 3, /"1G" is not a size in GiB/);
  await fails(t, img('create', '48', '1', 'vm.img'), 3, /not a power of two/);
  await fails(t, img('create', '64', '1000000', 'vm.img'), 3, /over the limit/);
  await fails(t, img('create', '64', '1', 'vm.img', 'none.img'), 4, /none\.img/);
  await succeeds(t, img('create', '64', '1', 'vm.img'));
  await fails(t, img('create', '64', '1', 'vm.img'), 5, /exists already/);
  await fails(t, img('rollback', 'vm.img', '1'), 4, /no snapshot "1" of "vm\.img": it has none/);
  await succeeds(t, img('snapshot', 'vm.img'));
  await fails(t, img('rollback', 'vm.img', '0'), 4, /no snapshot "0" of "vm\.img": it has 1 to 1/);
  await fails(t, img('rollback', 'vm.img', '2'), 4, /it has 1 to 1/);
  await fails(t, img('rollback', 'vm.img', '-1'), 4, /it has 1 to 1/);
  await fails(t, img('info', 'none.img'), 4, /none\.img/);
  await fails(t, img('commit', 'vm.img'), 2, /unknown command 'commit'/);
  t.is((await img('help')).exit, 0);
});
