/**
 * Image files that another program truncates while they are mounted: that image fails, and the
 * mount continues with all others.
 */
import { open, readFile, truncate } from 'node:fs/promises';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB } from '../helpers/mount.js';

const SIZE = 64 * MiB;

test.serial(
  'truncated files: reading and writing them fails, and other images are not affected',
  async (t) => {
    const mount = await imagesFor(t, { read: SIZE, written: SIZE, other: SIZE });
    for (const name of ['read', 'written', 'other']) {
      const image = await Image.open(mount.image(name), { write: true });
      await image.write(Buffer.alloc(2 * MiB, name), 0);
      await image.close();
    }
    await mount.mount();

    const reader = await open(mount.file('read'), 'r');
    t.teardown(() => reader.close());
    await reader.read(Buffer.alloc(4096), 0, 4096, 0);
    await truncate(mount.image('read'), 8192);
    for (let tries = 0; tries < 3; ++tries) {
      await t.throwsAsync(reader.read(Buffer.alloc(4096), 0, 4096, MiB + tries * 65536), {
        code: 'EIO',
      });
    }

    const writer = await open(mount.file('written'), 'r+');
    t.teardown(() => writer.close().catch(() => undefined));
    await writer.write(Buffer.alloc(4096, 1), 0, 4096, 0);
    await truncate(mount.image('written'), 8192);
    await t.throwsAsync(async () => {
      await writer.write(Buffer.alloc(4096, 2), 0, 4096, 65536);
      await writer.sync();
    });
    await t.throwsAsync(writer.sync());
    t.regex((await mount.status('written')).lastError?.message ?? '', /cut short|damaged/);

    const other = await readFile(mount.file('other'));
    t.deepEqual(other.subarray(0, 2 * MiB), Buffer.alloc(2 * MiB, 'other'));
  },
);
