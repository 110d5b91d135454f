/**
 * More images than the mount may have descriptors: none is missing, and failed reads are errors.
 */
import { execFile } from 'node:child_process';
import { open, readdir, readFile, stat, writeFile, type FileHandle } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { mountedBy } from '../helpers/mounted.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';

const run = promisify(execFile);

const IMAGES = 120;

/** Node itself has about thirty open. */
const DESCRIPTORS = 96;

const nameOf = (at: number): string => `v${String(at).padStart(3, '0')}`;
const names = Array.from({ length: IMAGES }, (_, at) => nameOf(at));

async function manyImages(t: ExecutionContext<unknown>): Promise<TestMount> {
  const mount = await imagesFor(t, { [nameOf(0)]: MiB });
  const image = await Image.open(mount.image(nameOf(0)), { write: true });
  await image.write(Buffer.from('here'), 0);
  await image.close();
  // copyFile would copy the holes, of which the images nearly all consist.
  const others = names.slice(1).map((name) => mount.image(name));
  const copy = 'for to; do cp --sparse=always -- "$0" "$to"; done';
  await run('bash', ['-e', '-c', copy, mount.image(nameOf(0)), ...others]);
  await mountedBy(t, ['prlimit', `--nofile=${DESCRIPTORS}`, '--'], mount.images, mount.point);
  return mount;
}

test.serial(
  'with more images than descriptors, each is listed, read, snapshotted and shown in status',
  async (t) => {
    const mount = await manyImages(t);
    t.deepEqual(await readdir(mount.point), names);
    const sizes = await Promise.all(names.map(async (name) => (await stat(mount.file(name))).size));
    t.deepEqual(new Set(sizes), new Set([MiB]));
    for (const name of names)
      t.is((await readFile(mount.file(name))).toString('latin1', 0, 4), 'here');
    for (const name of names) await mount.write('s', name, 'snapshot');
    for (const name of names) t.deepEqual(await readdir(mount.control(name, 'at')), ['s']);
    const status = JSON.parse(await readFile(path.join(mount.point, '.pcow/status'), 'utf8')) as {
      images: { name: string; state: string }[];
    };
    t.deepEqual(
      status.images.filter(({ state }) => state === 'ok').map(({ name }) => name),
      names,
    );
    const metrics = await readFile(path.join(mount.point, '.pcow/metrics'), 'utf8');
    t.deepEqual(
      [...metrics.matchAll(/^pcow_snapshots\{image="(\w+)"\} 1$/gm)].map((match) => match[1]),
      names,
    );
  },
);

test.serial(
  'writes to an image are kept when its descriptors are closed for other images',
  async (t) => {
    const mount = await manyImages(t);
    for (const name of names) await writeFile(mount.file(name), name, { flag: 'r+' });
    for (const name of names)
      t.is((await readFile(mount.file(name))).toString('latin1', 0, 4), name);
  },
);

test.serial(
  'while all descriptors are used, the other images are errors, not absent',
  async (t) => {
    const mount = await manyImages(t);
    const files: FileHandle[] = [];
    t.teardown(() => Promise.all(files.map((file) => file.close().catch(() => undefined))));
    const codes = new Set<string | undefined>();
    for (const name of names) {
      try {
        files.push(await open(mount.file(name)));
      } catch (error) {
        codes.add((error as NodeJS.ErrnoException).code);
      }
    }
    t.deepEqual(codes, new Set(['EMFILE']));
    t.deepEqual(await readdir(mount.point), names);
    await Promise.all(files.map((file) => file.close()));
    files.length = 0;
    for (const name of names)
      t.is((await readFile(mount.file(name))).toString('latin1', 0, 4), 'here');
  },
);

test.serial('the mount raises its own soft limit', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  const daemon = await mountedBy(
    t,
    ['prlimit', '--nofile=64:2048', '--'],
    mount.images,
    mount.point,
  );
  t.regex(
    await readFile(`/proc/${daemon.pid ?? 0}/limits`, 'utf8'),
    /^Max open files +2048 +2048/m,
  );
});
