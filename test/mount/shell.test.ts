/**
 * Users at a shell, and programs that search whole trees: nothing in a mount hangs them, and they
 * do no harm.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, stat, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { HELP } from '../../src/mount/control/help.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';

const run = promisify(execFile);

/** A shell command that must succeed, and soon. */
async function shell(mount: TestMount, command: string): Promise<string> {
  const { stdout } = await run('bash', ['-c', `set -o pipefail; ${command}`], {
    cwd: mount.scratch,
    timeout: 600_000,
  });
  return stdout;
}

/** With the control files listed, so that tools that search directories find them. */
async function stage(t: ExecutionContext<unknown>): Promise<TestMount> {
  const mount = await imagesFor(t, { vm1: MiB, vm2: MiB });
  await mount.mount('--show-control');
  await writeFile(mount.file('vm1'), 'needle', { flag: 'r+' });
  await mount.write('one', 'vm1', 'snapshot');
  return mount;
}

/** The contents that reading must not change. */
async function content(mount: TestMount): Promise<unknown> {
  const images = await Promise.all(
    ['vm1', 'vm2'].map(async (name) => {
      const { lastError } = await mount.status(name);
      const sum = createHash('sha256')
        .update(await readFile(mount.file(name)))
        .digest('hex');
      return [name, sum, await readdir(mount.control(name, 'at')), lastError];
    }),
  );
  return [await readdir(mount.point), images];
}

test.serial('find, grep, cp, tar, du and ls go through all of it', async (t) => {
  const mount = await stage(t);
  const before = await content(mount);
  const files = (await shell(mount, 'find mnt -type f')).trim().split('\n');
  for (const file of ['mnt/vm1', 'mnt/.pcow/help', 'mnt/.pcow/vm2/status', 'mnt/.pcow/vm1/at/one'])
    t.true(files.includes(file), file);
  t.is(await shell(mount, 'find mnt -type f -exec cat {} + | grep -c needle'), '2\n');
  t.deepEqual((await shell(mount, 'grep -rl needle mnt')).trim().split('\n').sort(), [
    'mnt/.pcow/vm1/at/one',
    'mnt/vm1',
  ]);
  await shell(
    mount,
    'cp -r mnt copy && tar cf archive.tar mnt && ls -lR mnt && du -a mnt && cmp copy/vm1 mnt/vm1',
  );
  await shell(mount, 'cmp copy/.pcow/vm1/at/one mnt/vm1');
  t.is(await shell(mount, 'tar xOf archive.tar mnt/.pcow/help'), HELP);
  t.deepEqual(await content(mount), before);
});

test.serial(
  'copying the copy of a mount back does no harm, and neither does rm -r of the control files',
  async (t) => {
    const mount = await stage(t);
    await shell(mount, 'cp -r mnt copy');
    const [names, images] = (await content(mount)) as [string[], unknown[][]];
    const states = (list: unknown[][]) => list.map((image) => image.slice(0, 3));
    for (const command of [
      'cp -r copy/.pcow mnt/',
      'rm -rf mnt/.pcow',
      'mv mnt/.pcow/vm1 mnt/vm3',
      'sed -i s/a/b/ mnt/.pcow/vm1/delete',
    ]) {
      await t.throwsAsync(shell(mount, command), undefined, command);
      const [namesNow, imagesNow] = (await content(mount)) as [string[], unknown[][]];
      t.deepEqual(namesNow, names, command);
      t.deepEqual(states(imagesNow), states(images), command);
    }
  },
);

test.serial(
  'every control file has a useful text of its true size, and is in the help',
  async (t) => {
    const mount = await stage(t);
    const directories = [path.join(mount.point, '.pcow'), mount.control('vm1')];
    for (const directory of directories) {
      for (const entry of await readdir(directory, { withFileTypes: true })) {
        if (!entry.isFile()) continue;
        const file = path.join(directory, entry.name);
        const text = await readFile(file, 'utf8');
        t.regex(text, /\S\n$/, file);
        t.is((await stat(file)).size, Buffer.byteLength(await readFile(file, 'utf8')), file);
        const called =
          directory === directories[0] ? `.pcow/${entry.name}` : `.pcow/NAME/${entry.name}`;
        t.true(entry.name === 'help' || HELP.includes(called), called);
      }
    }
  },
);

test.serial('df is correct on a disk of more than 16 TiB', async (t) => {
  const mount = await imagesFor(t, {});
  await mkdir(mount.images, { recursive: true });
  await run('mount', ['-t', 'tmpfs', '-o', 'size=64T', 'none', mount.images]);
  t.teardown(() => run('umount', ['-l', mount.images]));
  await Image.create(mount.image('vm1'), { size: MiB });
  await mount.mount();
  const { blocks, bsize } = await statfs(mount.point);
  t.is(blocks * bsize, 2 ** 46);
  t.is((await shell(mount, 'df --output=size -BT mnt | tail -n 1')).trim(), '64T');
  await mount.unmount();
});

test.serial('times: touch sets the given time, to the nanosecond', async (t) => {
  const mount = await stage(t);
  await shell(
    mount,
    `touch -m -d '2020-01-02 03:04:05.123456789 UTC' mnt/vm1 && touch -a -d '2021-01-02 03:04:05.5 UTC' mnt/vm1`,
  );
  t.is(
    await shell(mount, `TZ=UTC stat -c '%y|%x' images/vm1.pcow`),
    '2020-01-02 03:04:05.123456789 +0000|2021-01-02 03:04:05.500000000 +0000\n',
  );
});
