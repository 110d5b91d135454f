import {
  copyFile,
  open,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { dependants, Image, removeImage, standingOn, takingAway } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

test('dependants finds the images that stand directly on an image', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, `${name}.pcow`);
  const freeze = async (name: string) => {
    const image = await Image.open(at(name), { write: true });
    const layer = await image.freezeForClone('frozen');
    await image.close();
    return layer;
  };
  await Image.create(at('base'), { size: 1 << 20 });
  t.deepEqual(await dependants(directory, at('base')), []);
  const layer = await freeze('base');
  await Image.create(at('child1'), { base: { path: at('base'), layer } });
  await Image.create(at('child2'), { base: { path: at('base'), layer } });
  const childLayer = await freeze('child1');
  await Image.create(at('grandchild'), { base: { path: at('child1'), layer: childLayer } });

  // Files that must not matter: one that is not an image, a missing base, a copy of the base under
  // another name.
  await writeFile(at('text'), 'not an image');
  await copyFile(at('base'), at('copy'));
  await Image.create(at('on-copy'), { base: { path: at('copy'), layer } });
  await Image.create(at('orphan'), {
    base: { path: at('on-copy'), layer: await freeze('on-copy') },
  });
  await rename(at('on-copy'), path.join(directory, 'gone'));

  const children = [
    { image: at('child1'), layer },
    { image: at('child2'), layer },
  ];
  t.deepEqual(await dependants(directory, at('base')), children);
  t.deepEqual(await dependants(directory, at('child1')), [
    { image: at('grandchild'), layer: childLayer },
  ]);
  t.deepEqual(await dependants(directory, at('grandchild')), []);
  t.deepEqual(await dependants(directory, at('none')), []);

  // Another path of the same file is the same image; so is an image that is being written.
  await symlink('base.pcow', path.join(directory, 'link'));
  const writer = await Image.open(at('base'), { write: true });
  t.deepEqual(await dependants(directory, path.join(directory, 'link')), children);
  await writer.close();
});

interface Stage {
  directory: string;
  at: (name: string) => string;
  /** A new image with a snapshot s, which stands on the snapshot s of `base`. */
  image: (name: string, base?: string) => Promise<void>;
}

async function stage(t: ExecutionContext): Promise<Stage> {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, `${name}.pcow`);
  const image = async (name: string, base?: string) => {
    await Image.create(at(name), {
      size: 1 << 20,
      ...(base !== undefined && { base: { path: at(base), snapshot: 's' } }),
    });
    const made = await Image.open(at(name), { write: true });
    await made.snapshot('s');
    await made.close();
  };
  return { directory, at, image };
}

async function flip(file: string, offsets: number[]): Promise<void> {
  const handle = await open(file, 'r+');
  for (const offset of offsets) {
    const byte = Buffer.alloc(1);
    await handle.read(byte, 0, 1, offset);
    byte.writeUInt8(byte.readUInt8() ^ 1);
    await handle.write(byte, 0, 1, offset);
  }
  await handle.close();
}

test('dependants finds an image even if it, or an image below it, is damaged or missing', async (t) => {
  const { directory, at, image } = await stage(t);
  await image('a');
  await image('b', 'a');
  await image('c', 'b');
  const names = async (of: string) =>
    (await dependants(directory, at(of))).map((one) => path.basename(one.image, '.pcow'));
  // The base of the middle image is missing; c stands on b nevertheless.
  await rename(at('a'), path.join(directory, 'away'));
  t.deepEqual(await names('b'), ['c']);
  await t.throwsAsync(removeImage(at('b')), {
    code: 'PCOW_IN_USE',
    message: /c\.pcow stands on it/,
  });
  await rename(path.join(directory, 'away'), at('a'));
  // One bit of its layer directory, and of one of its superblocks, is wrong.
  const bytes = await readFile(at('c'));
  const place = Math.max(...[80, 4096 + 80].map((field) => Number(bytes.readBigUInt64LE(field))));
  await flip(at('c'), [place + 70, 30]);
  await t.throwsAsync(Image.open(at('c')), { code: 'PCOW_CORRUPT' });
  t.deepEqual(await names('b'), ['c']);
  // Its base is no longer at the path that it has, but it was made on this image.
  await rename(at('b'), at('renamed'));
  t.deepEqual(await names('renamed'), ['c']);
  await t.throwsAsync(removeImage(at('renamed')), { code: 'PCOW_IN_USE' });
});

test('if a file cannot be checked, nothing is deleted, and the file is named', async (t) => {
  const { directory, at, image } = await stage(t);
  await image('base');
  await image('child', 'base');
  await flip(at('child'), [200, 4096 + 200]);
  const unclear = {
    code: 'PCOW_BUSY',
    message: /cannot tell whether \S+child\.pcow stands on \S+base\.pcow: .+ move the file/,
  };
  await t.throwsAsync(dependants(directory, at('base')), unclear);
  await t.throwsAsync(removeImage(at('base')), unclear);
  // A link to a path that may exist again later.
  await rm(at('child'));
  await symlink('/nowhere/child.pcow', at('child'));
  await t.throwsAsync(removeImage(at('base')), { code: 'PCOW_BUSY' });
  await rm(at('child'));
  await removeImage(at('base'));
  t.deepEqual(await readdir(directory), []);
});

test('making an image on a base and removing the base exclude each other', async (t) => {
  const { at, image } = await stage(t);
  await image('base');
  const events: string[] = [];
  let release!: () => void;
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  const making = standingOn(at('base'), async () => {
    await gate;
    await Image.create(at('child'), { base: { path: at('base'), snapshot: 's' } });
    events.push('made');
  });
  const taking = takingAway({ file: at('base'), what: 'base' }, () => {
    events.push('taken');
    return Promise.resolve();
  });
  taking.catch(() => undefined);
  release();
  await making;
  await t.throwsAsync(taking, { code: 'PCOW_IN_USE' });
  t.deepEqual(events, ['made']);

  // The other way round: creation waits for the end of the deletion, and then finds no base.
  await rm(at('child'));
  const clone: Promise<void>[] = [];
  await takingAway({ file: at('base'), what: 'base' }, async () => {
    clone.push(Image.create(at('child'), { base: { path: at('base'), snapshot: 's' } }));
    clone[0]?.catch(() => undefined);
    const base = await Image.open(at('base'), { write: true });
    await base.delete('s');
    await base.close();
  });
  await t.throwsAsync(Promise.all(clone), { code: 'PCOW_NOT_FOUND' });
});
