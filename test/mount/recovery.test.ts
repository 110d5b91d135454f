/**
 * A mount that is killed is followed by a sync of its images, so that an orderly restart of the
 * host loses nothing.
 */
import { execFile } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { checkImage, Image, recoverDirectory, recoverImage } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';

const run = promisify(execFile);
const CLI = new URL('../../cli/pcow.cjs', import.meta.url).pathname;

/** Written, and never synced. */
async function write(mount: TestMount, name: string, value: number): Promise<void> {
  const file = await open(mount.file(name), 'r+');
  await file.write(Buffer.alloc(MiB / 2, value), 0, MiB / 2, 0);
  await file.close();
}

async function isClean(mount: TestMount, name: string): Promise<boolean> {
  const { clean, inUse } = await checkImage(mount.image(name));
  return clean && !inUse;
}

async function firstByte(mount: TestMount, name: string): Promise<number> {
  const image = await Image.open(mount.image(name));
  const bytes = Buffer.alloc(1);
  await image.read(bytes, 0);
  await image.close();
  return bytes[0] ?? 0;
}

test.serial('the watchdog of a killed mount recovers its images', async (t) => {
  const mount = await imagesFor(t, { vm1: 2 * MiB, vm2: 2 * MiB, vm3: 2 * MiB });
  await mount.mount();
  await write(mount, 'vm1', 1);
  await write(mount, 'vm2', 2);
  t.is(await readFile(mount.file('vm3')).then(({ length }) => length), 2 * MiB);
  await mount.kill();
  for (const [name, value] of [
    ['vm1', 1],
    ['vm2', 2],
  ] as const) {
    await eventually(() => isClean(mount, name));
    t.is(await firstByte(mount, name), value);
  }
});

test.serial('a mount recovers the images that it finds, and so does “pcow recover”', async (t) => {
  const mount = await imagesFor(t, { vm1: 2 * MiB, vm2: 2 * MiB });
  const left = async (name: string, value: number) => {
    const program = `
      const { Image } = await import(${JSON.stringify(new URL('../../src/index.js', import.meta.url).pathname)});
      const image = await Image.open(${JSON.stringify(mount.image(name))}, { write: true });
      await image.write(Buffer.alloc(65536, ${value}), 0);
      process.kill(process.pid, 'SIGKILL');`;
    await t.throwsAsync(run(process.execPath, ['--input-type=module', '-e', program]));
    t.false(await isClean(mount, name));
  };
  await left('vm1', 1);
  const held = await Image.open(mount.image('vm2'), { write: true });
  await mount.mount();
  t.true(await isClean(mount, 'vm1'));
  t.is(await firstByte(mount, 'vm1'), 1);
  t.is(await recoverImage(mount.image('vm2')), 'in use');
  await held.close();
  await mount.unmount();

  await left('vm2', 2);
  const { stdout } = await run(process.execPath, [CLI, 'recover', mount.images]);
  t.is(stdout, `${mount.image('vm2')} is recovered\n`);
  t.true(await isClean(mount, 'vm2'));
  t.is(await firstByte(mount, 'vm2'), 2);
  t.deepEqual(await recoverDirectory(mount.images), { recovered: [], inUse: [], failed: [] });
});
