/**
 * Processes of one base share its memory: what the mount's clean store gives, keeps and refuses.
 */
import { readdir, readFile, readlink, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { mountDirectory } from '../../src/mount/index.js';
import { Image } from '../../src/engine/index.js';
import type { StoreFigures } from '../../src/engine/attach-server.js';
import { eventually } from '../helpers/eventually.js';
import { attachedTo, imageOnBase, monitored, monitorReport } from '../helpers/monitored.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { mountedBy } from '../helpers/mounted.js';
import { type Conversation, preloadable, program } from '../helpers/program.js';

const SIZE = 64 * MiB;

async function storeOf(mount: TestMount): Promise<StoreFigures | null> {
  const status = JSON.parse(await readFile(path.join(mount.point, '.pcow/status'), 'utf8')) as {
    cleanStore: StoreFigures | null;
  };
  return status.cleanStore;
}

/** Images "a", "b" and "c" on one base, mounted with a store of this size. */
async function threeOnOneBase(
  t: ExecutionContext<unknown>,
  ...options: string[]
): Promise<TestMount> {
  const mount = await imagesFor(t, {});
  await imageOnBase(mount, 'a', SIZE, (block) => (block % 251) + 1);
  for (const name of ['b', 'c']) {
    await Image.create(mount.image(name), {
      base: { path: mount.image('a-base'), snapshot: 'base' },
    });
  }
  await mount.mount(...options);
  return mount;
}

async function reader(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  name: string,
): Promise<Conversation> {
  const it = await monitored(t, await program('base-reader', mount.scratch), [mount.file(name)]);
  t.is(it.greeting, 'mapped');
  return it;
}

/** The sum of what base-reader reads of the whole base. */
function expected(): number {
  let sum = 0;
  for (let block = 0; block < SIZE / 65536; block += 1) sum += ((block % 251) + 1) * 1024;
  return sum;
}

async function readsAll(t: ExecutionContext<unknown>, it: Conversation): Promise<void> {
  t.is(Number((await it.ask(`sum 0 ${SIZE}`)).split(' ')[0]), expected());
}

async function shares(mount: TestMount, name: string, bytes: number): Promise<void> {
  await eventually(async () => (await monitorReport(mount, name)).sharedBytes === bytes);
}

test.serial(
  'two processes have the memory of their base once, and what each stores is its own',
  async (t) => {
    const mount = await threeOnOneBase(t, '--clean-store', '128M');
    const [a, b] = [await reader(t, mount, 'a'), await reader(t, mount, 'b')];
    for (const it of [a, b]) await readsAll(t, it);
    for (const name of ['a', 'b']) await shares(mount, name, SIZE);
    t.is((await storeOf(mount))?.bytes, SIZE);
    for (const it of [a, b]) {
      t.true(Number(await it.ask('memory')) < (SIZE / 1024) * 0.75, 'proportional');
      await eventually(async () => (await it.ask('mappings')) === '1');
    }
    t.is(await a.ask('put 70000 99'), 'ok');
    t.is(await a.ask('get 70000'), '99');
    t.is(await b.ask('get 70000'), '2');

    await mount.write('s', 'a', 'snapshot');
    t.is(await a.ask('get 70000'), '99');
    t.is(await a.ask('put 70000 98'), 'ok');
    t.is(await b.ask('get 70000'), '2');
    await readsAll(t, b);
    t.is(await a.ask('drop 1048576 1048576'), 'ok');
    t.is(await a.ask('put 1048577 77'), 'ok');
    await a.end();
    await attachedTo(mount, 'a', null);
    const again = await reader(t, mount, 'a');
    t.is(
      await again.ask('get 1048577'),
      '77',
      'a store after the pages were dropped is in the image',
    );
    t.is(await again.ask('get 70000'), '98');
  },
);

test.serial(
  'processes that only read, an image or a snapshot, share its memory, and keep it when the mount dies',
  async (t) => {
    const mount = await threeOnOneBase(t, '--clean-store', '256M');
    const snapshot = path.join(mount.point, '.pcow/a/at/s');
    const a = await reader(t, mount, 'a');
    t.is(await a.ask('put 70000 99'), 'ok');
    await mount.write('s', 'a', 'snapshot');
    t.is(await a.ask('put 70000 98'), 'ok');
    await a.end();
    await attachedTo(mount, 'a', null);
    const base = await program('base-reader', mount.scratch);
    const reading = (file: string) => monitored(t, base, [file, 'read']);
    const [b, c] = [await reading(mount.file('b')), await reading(mount.file('c'))];
    const [one, two] = [await reading(snapshot), await reading(snapshot)];
    for (const it of [b, c]) {
      await readsAll(t, it);
      t.is(await it.ask('get 70000'), '2');
    }
    const sum = `sum 0 ${SIZE}`;
    const stored = await one.ask(sum);
    for (const it of [one, two]) {
      t.is(await it.ask('get 70000'), '99');
      t.is(Number((await it.ask(sum)).split(' ')[0]), Number(stored.split(' ')[0]));
    }
    for (const it of [b, c, one, two]) {
      await eventually(async () => Number(await it.ask('memory')) < (SIZE / 1024) * 0.75);
      // The monitor may still show the last slices.
      await eventually(async () => (await it.ask('mappings')) === '1');
    }
    await t.throwsAsync(mount.write('s', 'a', 'delete'), { code: 'EBUSY' });
    await mount.kill();
    for (const it of [b, c]) await readsAll(t, it);
    for (const it of [one, two]) t.is(await it.ask('get 70000'), '99');
    t.is(await one.ask(`drop 0 ${SIZE}`), 'ok');
    t.is(Number((await one.ask(sum)).split(' ')[0]), Number(stored.split(' ')[0]));
  },
);

test.serial('an attached process cannot change what others read', async (t) => {
  const mount = await threeOnOneBase(t, '--clean-store', '128M');
  const [a, b] = [await reader(t, mount, 'a'), await reader(t, mount, 'b')];
  for (const it of [a, b]) await readsAll(t, it);
  await shares(mount, 'a', SIZE);
  t.is(await a.ask('attack'), 'nothing');
  await readsAll(t, b);
  const c = await reader(t, mount, 'c');
  await readsAll(t, c);
});

/** Bytes of memory of all clean stores that a process has open. */
async function storeMemory(pid: number): Promise<number> {
  const found = new Map<number, number>();
  for (const task of await readdir(`/proc/${pid}/task`)) {
    const directory = `/proc/${pid}/task/${task}/fd`;
    for (const name of await readdir(directory)) {
      const file = path.join(directory, name);
      if (!(await readlink(file).catch(() => '')).startsWith('/memfd:pcow-clean-store')) continue;
      const { ino, blocks } = await stat(file);
      found.set(ino, blocks * 512);
    }
  }
  return [...found.values()].reduce((sum, bytes) => sum + bytes, 0);
}

test.serial(
  'a process that reads all that it was given does not make the store larger than its budget, and keeps others from sharing until it ends',
  async (t) => {
    const mount = await imagesFor(t, {});
    await imageOnBase(mount, 'a', 3 * SIZE, (block) => (block % (SIZE / 65536) < 16 ? 7 : 0));
    await imageOnBase(mount, 'b', MiB, () => 8);
    await mount.mount('--clean-store', '128M');
    const a = await reader(t, mount, 'a');
    for (const segment of [0, 1, 2]) await a.ask(`sum ${segment * SIZE} ${MiB}`);
    await eventually(async () => (await storeOf(mount))!.refused > 0);
    t.is(await a.ask('inflate'), '128');
    const most = 2 * (SIZE + 4096);
    t.is(await storeMemory(mount.daemon.pid!), most);
    t.is((await storeOf(mount))?.segments, 2);
    const b = await reader(t, mount, 'b');
    const reads = async () => {
      t.is(Number((await b.ask(`sum 0 ${MiB}`)).split(' ')[0]), (8 * MiB) / 64);
    };
    const refused = (await storeOf(mount))?.refused ?? 0;
    await reads();
    await eventually(async () => ((await storeOf(mount))?.refused ?? 0) > refused);
    t.is((await monitorReport(mount, 'b')).sharedBytes, 0);
    t.is(await storeMemory(mount.daemon.pid!), most);
    await a.end();
    await shares(mount, 'b', MiB);
    await reads();
  },
);

test.serial('a clean store that could hold nothing is refused', async (t) => {
  const mount = await imagesFor(t, {});
  await t.throwsAsync(mountDirectory(mount.images, mount.point, { cleanStore: 4 * MiB }), {
    code: 'PCOW_INVALID',
    message: /64 MiB/,
  });
});

test.serial(
  'the mount is killed: what is shared stays, and the next mount shares on',
  async (t) => {
    const mount = await threeOnOneBase(t, '--clean-store', '128M');
    const a = await reader(t, mount, 'a');
    t.is(await a.ask('get 1000'), '1');
    await a.ask(`sum 0 ${8 * MiB}`);
    await eventually(async () => (await monitorReport(mount, 'a')).sharedBytes! >= 8 * MiB);
    await mount.kill();
    await readsAll(t, a);
    await mount.mount('--clean-store', '128M');
    await attachedTo(mount, 'a', a.pid);
    await shares(mount, 'a', SIZE);
    await readsAll(t, a);
  },
);

test.serial(
  'a base whose disk hangs for the store: the process gets its other requests, and shares memory when the disk answers',
  async (t) => {
    const mount = await imagesFor(t, {});
    await imageOnBase(mount, 'a', SIZE, (block) => (block % 251) + 1);
    const disk = path.join(mount.scratch, 'disk');
    await writeFile(disk, 'hang');
    const library = await preloadable('failing-disk', mount.scratch);
    await mountedBy(
      t,
      ['env', `LD_PRELOAD=${library}`, `FAILING_DISK=${disk}`, 'FAILING_FILE=/a-base.pcow'],
      mount.images,
      mount.point,
      '--clean-store',
      '128M',
    );
    const a = await reader(t, mount, 'a');
    await readsAll(t, a);
    await mount.write('s', 'a', 'snapshot');
    t.is((await monitorReport(mount, 'a')).sharedBytes, 0);
    await writeFile(disk, 'nothing');
    await eventually(async () => (await storeOf(mount))?.clients === 1);
    await readsAll(t, a);
    await shares(mount, 'a', SIZE);
  },
);

test.serial('without a store, processes make copies of their own', async (t) => {
  const mount = await threeOnOneBase(t);
  const a = await reader(t, mount, 'a');
  await readsAll(t, a);
  t.is(await storeOf(mount), null);
  t.is((await monitorReport(mount, 'a')).sharedBytes, 0);
});
