/** Inode numbers: the same in every mount, and different for each file. */
import { execFile } from 'node:child_process';
import { copyFile, readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import type { SnapshotInfo } from '../../src/engine/index.js';
import { AttributeSource } from '../../src/mount/fuse/attributes.js';
import type { Found } from '../../src/mount/images/catalog.js';
import type { FileStatus, ImageEntry } from '../../src/mount/images/image-entry.js';
import type { Place } from '../../src/mount/place.js';
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

test.serial(
  'a file has the same unique number in every mount, in whatever order files are accessed',
  async (t) => {
    const mount = await imagesFor(t, { a: 4 * MiB, b: 4 * MiB });
    await mount.mount();
    for (const name of ['a', 'b'])
      for (const snapshot of ['s', 't']) await mount.write(snapshot, name, 'snapshot');
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
  },
);

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

/** An image of which only attributes are asked. Its snapshots are those in `snapshots`. */
function image(number: number, snapshots: SnapshotInfo[] = []): Found {
  const view = { uuid: String(number), image: { snapshots: () => snapshots } };
  const entry = {
    name: `vm${number}`,
    identity: `1:${number}`,
    retired: false,
    view: () => Promise.resolve(view),
  };
  return { entry: entry as unknown as ImageEntry, status: { mode: 0o644 } as FileStatus };
}

function snapshotInfo(id: number): SnapshotInfo {
  return {
    id,
    name: `s${id}`,
    identity: String(id),
    size: MiB,
    created: new Date(0),
  } as unknown as SnapshotInfo;
}

const HUNDREDS = 300;

test('the numbers of an image that is gone are given back', (t) => {
  const attributes = new AttributeSource({} as Place);
  const stays = image(0);
  const number = attributes.ofImageControl(stays, '/.pcow/vm0/status', false, 0).ino;
  for (let at = 1; at < HUNDREDS; ++at) {
    const found = image(at);
    attributes.ofImageControl(found, `/.pcow/vm${at}/status`, false, 0);
    attributes.forget(found.entry);
    attributes.forget(found.entry);
  }
  t.is(attributes.kept, 1);
  t.is(attributes.ofImageControl(stays, '/.pcow/vm0/status', false, 0).ino, number);
});

test('an image that is gone gets no number that is kept', (t) => {
  const attributes = new AttributeSource({} as Place);
  const found = image(1);
  const { ino } = attributes.ofImageControl(found, '/.pcow/vm1/status', false, 0);
  attributes.forget(found.entry);
  found.entry.retired = true;
  t.is(attributes.ofImageControl(found, '/.pcow/vm1/status', false, 0).ino, ino);
  t.is(attributes.kept, 0);
});

test('the numbers of snapshots that are gone are given back, and the others stay', async (t) => {
  const attributes = new AttributeSource({} as Place);
  const present = [snapshotInfo(1)];
  const found = image(1, present);
  const first = (await attributes.ofSnapshot(found, snapshotInfo(1))).ino;
  for (let id = 2; id < HUNDREDS; ++id) {
    await attributes.ofSnapshot(found, snapshotInfo(id));
    t.true(attributes.kept <= 64);
  }
  t.is((await attributes.ofSnapshot(found, snapshotInfo(1))).ino, first);
  // As many as there are snapshots.
  for (let id = 2; id < HUNDREDS; ++id) {
    present.push(snapshotInfo(id));
    await attributes.ofSnapshot(found, snapshotInfo(id));
  }
  t.is(attributes.kept, HUNDREDS - 1);
});
