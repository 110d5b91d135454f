import { copyFile, rename, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';

import test from 'ava';

import { dependants, Image } from '../../src/engine/index.js';
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

  // Things that must not disturb: no image, a damaged one, a missing base, a copy of the base under another name.
  await writeFile(at('text'), 'not an image');
  await copyFile(at('base'), at('copy'));
  await Image.create(at('on-copy'), { base: { path: at('copy'), layer } });
  await Image.create(at('orphan'), { base: { path: at('on-copy'), layer: await freeze('on-copy') } });
  await rename(at('on-copy'), path.join(directory, 'gone'));

  const children = [
    { image: at('child1'), layer },
    { image: at('child2'), layer },
  ];
  t.deepEqual(await dependants(directory, at('base')), children);
  t.deepEqual(await dependants(directory, at('child1')), [{ image: at('grandchild'), layer: childLayer }]);
  t.deepEqual(await dependants(directory, at('grandchild')), []);
  t.deepEqual(await dependants(directory, at('none')), []);

  // Another path of the same file is the same image; so is one that is being written.
  await symlink('base.pcow', path.join(directory, 'link'));
  const writer = await Image.open(at('base'), { write: true });
  t.deepEqual(await dependants(directory, path.join(directory, 'link')), children);
  await writer.close();
});
