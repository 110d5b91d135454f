/** Inode numbers: the same in every mount, and different for each file. */
import { execFile } from 'node:child_process';
import { copyFile, readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';

const run = promisify(execFile);

async function everyFile(mount: TestMount, order: readonly string[]): Promise<Map<string, bigint>> {
  const files = order.flatMap((name) => [
    mount.control(name, 'at', 's'),
    mount.file(name),
    mount.control(name, 'at', 't'),
    mount.control(name, 'status'),
    mount.control(name, 'snapshot'),
    mount.control(name),
  ]);
  files.push(path.join(mount.point, '.pcow'), path.join(mount.point, '.pcow/status'), mount.point);
  const numbers = new Map<string, bigint>();
  for (const file of files) numbers.set(file, (await stat(file, { bigint: true })).ino);
  return numbers;
}

test.serial('a file has the same unique number in every mount, in whatever order files are accessed', async (t) => {
  const mount = await imagesFor(t, { a: 4 * MiB, b: 4 * MiB });
  await mount.mount();
  for (const name of ['a', 'b']) for (const snapshot of ['s', 't']) await mount.write(snapshot, name, 'snapshot');
  await mount.unmount();
  // An image with the same uuid and the same snapshots.
  await copyFile(mount.image('a'), mount.image('copy'));
  await mount.mount();
  const first = await everyFile(mount, ['a', 'b', 'copy']);
  await mount.unmount();
  await mount.mount();
  const second = await everyFile(mount, ['copy', 'b', 'a']);
  t.deepEqual(new Map([...second].sort()), new Map([...first].sort()));
  t.is(new Set(first.values()).size, first.size);
  t.true([...first.values()].some((number) => number > 2n ** 53n));
  // After a rename it is the same file.
  await run('mv', [mount.file('b'), mount.file('c')]);
  t.is((await stat(mount.file('c'), { bigint: true })).ino, first.get(mount.file('b')) ?? 0n);
});

test.serial('the numbers in a directory list are those of the files', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB, vm2: MiB });
  await mount.mount();
  const { stdout } = await run('python3', [
    '-c',
    'import os, sys\nfor it in os.scandir(sys.argv[1]): print(it.name, it.inode())',
    mount.point,
  ]);
  const listed = new Map(
    stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' ') as [string, string]),
  );
  for (const name of await readdir(mount.point)) {
    t.is(listed.get(name), String((await stat(mount.file(name), { bigint: true })).ino));
  }
});
