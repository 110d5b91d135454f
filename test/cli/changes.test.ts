/**
 * rebase, flatten, commit, compact, resize --shrink, rename and rm, at rest and through a mount.
 */
import { access, mkdir, readdir, rename } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds, type Run } from './outcome.js';

const BLOCK = 65536;
const SIZE = 64 * BLOCK;

interface Place {
  pcow: Run;
  directory: string;
  file: (name: string) => string;
  /** How a command names an image. */
  named: (name: string) => string;
}

async function write(file: string, blocks: Record<number, number>): Promise<void> {
  const image = await Image.open(file, { write: true });
  for (const [block, byte] of Object.entries(blocks)) {
    await image.write(Buffer.alloc(BLOCK, byte), Number(block) * BLOCK);
  }
  await image.close();
}

/** The first byte of each of the first blocks. */
async function content(file: string, snapshot?: string): Promise<number[]> {
  const image = await Image.open(file);
  const found: number[] = [];
  const buffer = Buffer.alloc(1);
  for (let block = 0; block < 6; block += 1) {
    await image.read(buffer, block * BLOCK, snapshot);
    found.push(buffer[0] ?? -1);
  }
  await image.close();
  return found;
}

/** base with the snapshots one and two, vm on one with a snapshot, other on one. */
async function family(t: ExecutionContext<unknown>): Promise<Place> {
  const directory = path.join(await scratchDirectory(t), 'images');
  await mkdir(directory);
  const file = (name: string) => path.join(directory, `${name}.pcow`);
  await Image.create(file('base'), { size: SIZE });
  await write(file('base'), { 0: 1, 1: 1, 2: 1 });
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('snapshot', 'base@one'));
  await write(file('base'), { 1: 2, 3: 2 });
  await succeeds(t, pcow('snapshot', 'base@two'));
  for (const name of ['vm', 'other']) await succeeds(t, pcow('clone', 'base@one', name));
  await write(file('vm'), { 2: 3, 4: 3 });
  return { pcow, directory, file, named: (name) => name };
}

async function mountedFamily(t: ExecutionContext<unknown>): Promise<Place> {
  const place = await family(t);
  const point = path.join(path.dirname(place.directory), 'mnt');
  await mkdir(point);
  await mounted(t, place.directory, point);
  return { ...place, named: (name) => path.join(point, name) };
}

const VM = [1, 1, 3, 0, 3, 0];
const ONE = [1, 1, 1, 0, 0, 0];

for (const [where, prepare] of [
  ['at rest', family],
  ['mounted', mountedFamily],
] as const) {
  test.serial(`${where}: rebase keeps the contents of an image and of its snapshots`, async (t) => {
    const { pcow, file, named } = await prepare(t);
    await succeeds(t, pcow('snapshot', `${named('vm')}@kept`));
    await succeeds(t, pcow('rebase', named('vm'), '--base', `${named('base')}@two`));
    t.deepEqual(await content(file('vm')), VM);
    t.deepEqual(await content(file('vm'), 'kept'), VM);
    t.regex(await succeeds(t, pcow('info', named('vm'))), /base\.pcow@two/);
    t.deepEqual(
      JSON.parse(await succeeds(t, pcow('rebase', named('vm'), '--base', '', '--json'))),
      {
        image: file('vm'),
        base: null,
      },
    );
    t.deepEqual(await content(file('vm')), VM);
    t.notRegex(await succeeds(t, pcow('info', named('vm'))), /^base/m);
  });

  test.serial(`${where}: flatten`, async (t) => {
    const { pcow, file, named } = await prepare(t);
    t.is(await succeeds(t, pcow('flatten', named('vm'))), 'vm no longer stands on a base\n');
    t.deepEqual(await content(file('vm')), VM);
    await succeeds(t, pcow('rm', named('other')));
    await succeeds(t, pcow('delete', `${named('base')}@one`));
    t.deepEqual(await content(file('vm')), VM);
  });

  test.serial(
    `${where}: commit, to a base that was written since, and to one that was not`,
    async (t) => {
      const { pcow, file, named } = await prepare(t);
      t.regex(
        await succeeds(t, pcow('commit', named('vm'), '--name', 'patched')),
        /base@patched.*\nbase was written since/,
      );
      t.deepEqual(await content(file('vm')), VM);
      t.deepEqual(await content(file('base'), 'patched'), VM);
      t.deepEqual(await content(file('base')), [1, 2, 1, 2, 0, 0]);
      t.deepEqual(await content(file('other')), ONE);

      await succeeds(t, pcow('clone', named('vm'), named('vm2')));
      await fails(t, pcow('commit', named('vm')), 6, /has snapshots \(auto-/, /delete them first/);
      const done = JSON.parse(
        await succeeds(t, pcow('commit', named('vm2'), '--name', 'two', '--json')),
      ) as object;
      t.like(done, { base: file('vm'), snapshot: 'two', followed: true });
      t.deepEqual(await content(file('vm')), VM);
    },
  );

  test.serial(`${where}: compact gives zeros back`, async (t) => {
    const { pcow, file, named } = await prepare(t);
    const image = await Image.open(file('vm'), { write: where === 'at rest' }).catch(() => null);
    await image?.close();
    if (where === 'at rest') await write(file('vm'), { 2: 0, 4: 0, 5: 0 });
    await succeeds(t, pcow('snapshot', `${named('vm')}@zeros`));
    const before = await content(file('vm'));
    const { before: was, after } = JSON.parse(
      await succeeds(t, pcow('compact', named('vm'), '--json')),
    ) as {
      before: number;
      after: number;
    };
    if (where === 'at rest') t.true(was - after >= 3 * BLOCK, `${was} ${after}`);
    t.deepEqual(await content(file('vm')), before);
    t.deepEqual(await content(file('vm'), 'zeros'), before);
  });

  test.serial(
    `${where}: resize --shrink, not below the size of its base; after growing again it has zeros there`,
    async (t) => {
      const { pcow, file, named } = await prepare(t);
      await succeeds(t, pcow('resize', named('vm'), '+4M'));
      await fails(t, pcow('resize', named('vm'), '6M'), 3, /loses the data after/, /--shrink/);
      await succeeds(t, pcow('resize', named('vm'), '6M', '--shrink'));
      await fails(
        t,
        pcow('resize', named('vm'), '1M', '--shrink'),
        3,
        /never smaller than what it stands on/,
      );
      t.deepEqual(await content(file('vm')), VM);
      await succeeds(t, pcow('flatten', named('vm')));
      await succeeds(t, pcow('resize', named('vm'), '192K', '--shrink'));
      await succeeds(t, pcow('resize', named('vm'), '1M'));
      t.deepEqual(await content(file('vm')), [1, 1, 3, 0, 0, 0]);
    },
  );

  test.serial(
    `${where}: rename updates the images that stand on it, rm refuses images that others stand on`,
    async (t) => {
      const { pcow, file, named, directory } = await prepare(t);
      await succeeds(t, pcow('rename', named('base'), 'ground'));
      t.deepEqual(await content(file('vm')), VM);
      t.regex(await succeeds(t, pcow('info', named('other'))), /ground\.pcow@one/);
      await fails(t, pcow('rename', named('vm'), 'other'), 5, /other/);
      await fails(t, pcow('rename', named('vm'), '/tmp/vm'), 3, /another directory/);
      await fails(
        t,
        pcow('rm', named('ground')),
        6,
        /ground.*can't be (deleted|removed): other\.pcow, vm\.pcow stand on it/,
      );
      await fails(t, pcow('rm', `${named('vm')}@x`), 2, /deletes whole images/, /pcow delete/);
      t.deepEqual((await readdir(directory)).sort(), ['ground.pcow', 'other.pcow', 'vm.pcow']);
      await succeeds(t, pcow('rm', named('ground'), named('vm'), named('other')));
      t.deepEqual(await readdir(directory), []);
    },
  );
}

test('rebase --unsafe works if the old base is gone', async (t) => {
  const { pcow, file } = await family(t);
  await rename(file('base'), file('moved'));
  await fails(t, pcow('info', 'vm'), 10, /base\.pcow/);
  await succeeds(t, pcow('rebase', 'vm', '--unsafe', '--base', 'moved@one'));
  t.deepEqual(await content(file('vm')), VM);
  // Without a snapshot it is the layer on which it stood, whatever was written since.
  await rename(file('moved'), file('again'));
  await succeeds(t, pcow('rebase', 'vm', '--unsafe', '--base', 'again'));
  t.deepEqual(await content(file('vm')), VM);
  t.regex(await succeeds(t, pcow('info', 'vm')), /again\.pcow@one/);
  await rename(file('again'), file('moved'));
  await fails(t, pcow('rebase', 'vm', '--unsafe', '--base', 'vm'), 10, /can't stand on itself/);
});

test('rm deletes damaged images, and images without their base', async (t) => {
  const { pcow, file } = await family(t);
  await rename(file('base'), file('moved'));
  await succeeds(t, pcow('rm', 'vm'));
  await t.throwsAsync(access(file('vm')));
});
