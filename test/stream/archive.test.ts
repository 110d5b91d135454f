/**
 * Exports: an image with its bases, its branches and its present content, as one image that stands
 * on no base.
 */
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { exportStream, importStream } from '../../src/stream/archive.js';
import {
  bench,
  type Bench,
  isSame,
  MiB,
  piecewise,
  reading,
  scribble,
  snapshotsOf,
  working,
} from './images.js';

async function exported(file: string): Promise<Buffer[]> {
  return reading(file, async (image) => {
    const records: Buffer[] = [];
    for await (const record of exportStream(image)) records.push(record);
    return records;
  });
}

/**
 * `vm` on `middle@more` on `ground@first`; all of them have a snapshot `first`, and `vm` has a
 * branch.
 */
async function family({ at, random }: Bench): Promise<void> {
  await Image.create(at('ground'), { size: 16 * MiB, blockSize: 16384 });
  await working(at('ground'), async (image) => {
    await scribble(image, random, 20);
    await image.snapshot('first');
    await scribble(image, random, 20);
    await image.snapshot('not-in-the-chain');
  });
  await Image.create(at('middle'), {
    base: { path: at('ground'), snapshot: 'first' },
    size: 20 * MiB,
  });
  await working(at('middle'), async (image) => {
    for (const name of ['first', 'gone', 'more']) {
      await scribble(image, random, 10);
      await image.snapshot(name);
    }
    await image.delete('gone');
  });
  await Image.create(at('vm'), { base: { path: at('middle'), snapshot: 'more' } });
  await working(at('vm'), async (image) => {
    for (const name of ['first', 'a', 'b']) {
      await scribble(image, random, 10);
      await image.snapshot(name);
    }
    await image.rollback('a');
    await image.resize(24 * MiB);
    await scribble(image, random, 10);
    await image.snapshot('branch');
    await scribble(image, random, 10);
  });
}

test('a whole chain with branches comes back as one image', async (t) => {
  const given = await bench(t);
  const { at, random } = given;
  await family(given);
  const imported = await importStream(
    piecewise(Buffer.concat(await exported(at('vm'))), random),
    at('new'),
  );
  t.is(imported.snapshots, 7);
  t.is(imported.size, 24 * MiB);
  const info = await reading(at('new'), (image) => image.info());
  t.is(info.base, null);
  t.is(info.blockSize, 16384);
  for (const [file, name, there] of [
    ['ground', 'first', 'first'],
    ['middle', 'first', 'middle.first'],
    ['middle', 'more', 'more'],
    ['vm', 'first', 'vm.first'],
    ['vm', 'a', 'a'],
    ['vm', 'b', 'b'],
    ['vm', 'branch', 'branch'],
    ['vm', null, null],
  ] as const) {
    await isSame(t, [at(file), name], [at('new'), there]);
    if (name !== null)
      t.is((await snapshotsOf(at('new')))[there], (await snapshotsOf(at(file)))[name]);
  }
  const parents = await reading(at('new'), (image) =>
    image.snapshots().map(({ name, parent }) => [name, parent]),
  );
  t.deepEqual(Object.fromEntries(parents), {
    first: null,
    'middle.first': 'first',
    more: 'middle.first',
    'vm.first': 'more',
    a: 'vm.first',
    b: 'a',
    branch: 'a',
  });
});

test('an export that is damaged or truncated makes no image', async (t) => {
  const given = await bench(t);
  const { at, random } = given;
  await family(given);
  const records = await exported(at('vm'));
  const bytes = Buffer.concat(records);
  const damaged = () => {
    const copy = Buffer.from(bytes);
    copy[random.below(copy.length)]! ^= 1 << random.below(8);
    return copy;
  };
  const variants = [
    ...Array.from({ length: 15 }, damaged),
    bytes.subarray(0, random.below(bytes.length)),
    Buffer.concat(records.slice(0, -1)),
    Buffer.concat(records.toSpliced(1 + random.below(records.length - 2), 1)),
  ];
  for (const variant of variants) {
    await t.throwsAsync(importStream(piecewise(variant, random), at('new')), {
      message: /^the stream |^this is an? |size|name/,
    });
    await t.throwsAsync(Image.open(at('new')), { code: 'PCOW_NOT_FOUND' });
  }
  await importStream(piecewise(bytes, random), at('new'));
  await t.throwsAsync(importStream(piecewise(bytes, random), at('new')), { code: 'PCOW_EXISTS' });
});

test('an image without snapshots is exported as it is', async (t) => {
  const { at, random } = await bench(t);
  await Image.create(at('plain'), { size: MiB });
  await working(at('plain'), (image) => scribble(image, random, 10));
  await importStream(piecewise(Buffer.concat(await exported(at('plain'))), random), at('new'));
  await isSame(t, [at('plain'), null], [at('new'), null]);
});
