/**
 * Images through OCI layouts: the same content comes back, gives the same digests, and moves once.
 */
import { randomBytes } from 'node:crypto';
import { readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image, PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import { LayoutStore } from '../../src/registry/layout.js';
import { hiddenName } from '../../src/registry/hidden-image.js';
import { pull } from '../../src/registry/pull.js';
import { push } from '../../src/registry/push.js';
import { type LayoutReference, parseReference } from '../../src/registry/reference.js';
import { bench, isSame, MiB, reading, scribble, snapshotsOf, working } from '../stream/images.js';

function layout(directory: string, tag: string): LayoutStore {
  return new LayoutStore(parseReference(`oci:${directory}:${tag}`) as LayoutReference);
}

function pushed(file: string, snapshot: string, store: LayoutStore) {
  return reading(file, (image) => push(image, image.snapshotInfo(snapshot).id, store));
}

async function sourceImage(
  file: string,
  random: Parameters<typeof scribble>[1],
  count: number,
  blockSize = 65536,
) {
  await Image.create(file, { size: 64 * MiB, blockSize });
  await working(file, async (image) => {
    for (let number = 0; number < count; number++) {
      if (random.chance(0.5))
        await image.resize(image.info().size + 4096 * (1 + random.below(500)));
      await scribble(image, random, 30);
      await image.snapshot(`s${number}`);
    }
    await scribble(image, random, 5);
  });
}

async function failure(
  t: ExecutionContext,
  work: Promise<unknown>,
  code: PcowErrorCode,
  text: RegExp,
): Promise<void> {
  const error = await t.throwsAsync(work, { instanceOf: PcowError });
  t.is(error.code, code);
  t.regex(error.message, text);
}

test('a chain goes through a layout byte for byte, with names, times and identities', async (t) => {
  const { at, random, directory } = await bench(t);
  await sourceImage(at('source'), random, 4);
  const { layers } = await pushed(at('source'), 's3', layout(path.join(directory, 'oci'), 'v1'));
  t.is(layers, 4);
  const { made, present } = await pull(layout(path.join(directory, 'oci'), 'v1'), at('copy'));
  t.deepEqual([made, present], [true, 0]);
  t.deepEqual(await snapshotsOf(at('copy')), await snapshotsOf(at('source')));
  for (let number = 0; number < 4; number++)
    await isSame(t, [at('source'), `s${number}`], [at('copy'), `s${number}`]);
  await isSame(t, [at('source'), 's3'], [at('copy'), null]);
});

test('the same content gives the same digest, whoever pushes it, and is sent once', async (t) => {
  const { at, random, directory } = await bench(t);
  await sourceImage(at('source'), random, 3);
  const first = await pushed(at('source'), 's2', layout(path.join(directory, 'one'), 'v1'));
  await pull(layout(path.join(directory, 'one'), 'v1'), at('copy'));
  const second = await pushed(at('copy'), 's2', layout(path.join(directory, 'two'), 'v1'));
  t.deepEqual(second, first);
  const again = await pushed(at('copy'), 's2', layout(path.join(directory, 'one'), 'v1'));
  t.deepEqual([again.digest, again.sent, again.present], [first.digest, 0, first.sent]);

  // Layers with the same content in an image with other blocks, written in another order.
  await Image.create(at('other'), { size: 64 * MiB, blockSize: 4096 });
  const { size } = await reading(at('source'), (image) => image.snapshotInfo('s0'));
  await working(at('other'), async (image) => {
    if (size > 64 * MiB) await image.resize(size);
    const bytes = Buffer.alloc(size);
    await reading(at('source'), (source) => source.read(bytes, 0, 's0'));
    for (let end = size; end > 0; end -= 4096) {
      const unit = bytes.subarray(end - 4096, end);
      if (unit.some((byte) => byte !== 0)) await image.write(unit, end - 4096);
    }
    await image.snapshot('anything');
  });
  const third = await pushed(at('other'), 'anything', layout(path.join(directory, 'one'), 'other'));
  t.true(third.sent < 4096, 'only a config');
});

test('an update moves what has changed, in both directions, also onto a base', async (t) => {
  const { at, directory } = await bench(t);
  const oci = path.join(directory, 'oci');
  await Image.create(at('golden'), { size: 64 * MiB });
  await working(at('golden'), async (image) => {
    await image.write(randomBytes(16 * MiB), 0);
    await image.snapshot('v1');
  });
  const first = await pushed(at('golden'), 'v1', layout(oci, 'v1'));
  t.true(first.sent > 16 * MiB);
  await pull(layout(oci, 'v1'), at('copy'));
  await Image.create(at('clone'), { base: { path: at('golden'), snapshot: 'v1' } });
  await working(at('clone'), async (image) => {
    await image.write(randomBytes(MiB), 5 * MiB);
    await image.write(randomBytes(4096), 40 * MiB);
    await image.discard(8 * MiB, MiB);
    await image.snapshot('v2');
  });
  const update = await pushed(at('clone'), 'v2', layout(oci, 'v2'));
  t.true(update.sent < 1.1 * MiB, `${update.sent} bytes`);
  const { present, fetched } = await pull(layout(oci, 'v2'), at('copy'));
  t.is(present, 1);
  t.true(fetched < 1.1 * MiB, `${fetched} bytes`);
  await isSame(t, [at('clone'), 'v2'], [at('copy'), 'v2']);
  t.is((await pull(layout(oci, 'v2'), at('copy'))).present, 2, 'nothing is missing');
});

test('a new image stands on one that has older snapshots of it, and holds only the others', async (t) => {
  const { at, directory } = await bench(t);
  const oci = path.join(directory, 'oci');
  await Image.create(at('source'), { size: 64 * MiB });
  await working(at('source'), async (image) => {
    await image.write(randomBytes(8 * MiB), 0);
    await image.snapshot('v1');
    await image.write(randomBytes(MiB), MiB);
    await image.snapshot('v2');
    await image.resize(80 * MiB);
    await image.write(randomBytes(32 * MiB), 40 * MiB);
    await image.snapshot('v3');
  });
  await pushed(at('source'), 'v1', layout(oci, 'v1'));
  await pushed(at('source'), 'v3', layout(oci, 'v3'));
  await pull(layout(oci, 'v1'), at('golden'));
  const stop = new AbortController();
  const stopped = pull(layout(oci, 'v3'), at('new'), {
    base: at('golden'),
    signal: stop.signal,
    onProgress: (done) => {
      if (done > 20 * MiB) stop.abort();
    },
  });
  await failure(t, stopped, 'PCOW_CANCELLED', /stopped/);
  t.false((await readdir(directory)).includes('new.pcow'));
  t.is((await pull(layout(oci, 'v3'), at('new'), { base: at('golden') })).present, 2);
  for (const name of ['v2', 'v3']) await isSame(t, [at('source'), name], [at('new'), name]);
  t.like(await reading(at('new'), (image) => image.info().base), {
    path: 'golden.pcow',
    snapshot: 'v1',
  });
  t.true((await stat(at('new'))).blocks * 512 < 36 * MiB);

  // Everything is there: nothing but a clone.
  t.is((await pull(layout(oci, 'v3'), at('third'), { base: at('new') })).present, 3);
  await isSame(t, [at('source'), 'v3'], [at('third'), null]);
  await Image.create(at('empty'), { size: 64 * MiB });
  await failure(
    t,
    pull(layout(oci, 'v3'), at('fourth'), { base: at('empty') }),
    'PCOW_NOT_FOUND',
    /no snapshot/,
  );
});

test('an interrupted pull shows no image, and goes on', async (t) => {
  const { at, directory } = await bench(t);
  const oci = path.join(directory, 'oci');
  await Image.create(at('source'), { size: 256 * MiB });
  await working(at('source'), async (image) => {
    await image.write(randomBytes(4 * MiB), 0);
    await image.snapshot('one');
    await image.write(randomBytes(96 * MiB), 4 * MiB);
    await image.snapshot('two');
  });
  await pushed(at('source'), 'two', layout(oci, 'v1'));
  const stop = new AbortController();
  const stopped = pull(layout(oci, 'v1'), at('copy'), {
    signal: stop.signal,
    onProgress: (done) => {
      if (done > 60 * MiB) stop.abort();
    },
  });
  await failure(t, stopped, 'PCOW_CANCELLED', /stopped/);
  t.false((await readdir(directory)).includes('copy.pcow'));
  let least = Infinity;
  const { present, made } = await pull(layout(oci, 'v1'), at('copy'), {
    onProgress: (done) => (least = Math.min(least, done)),
  });
  t.deepEqual([present, made], [1, true]);
  t.true(least < 64 * MiB, 'a part of the second layer had arrived');
  await isSame(t, [at('source'), 'two'], [at('copy'), 'two']);
  t.deepEqual(
    (await readdir(directory)).filter((name) => name.startsWith('.')),
    [],
    'nothing is left',
  );
});

test('bytes that are not those of the manifest never get into an image', async (t) => {
  const { at, random, directory } = await bench(t);
  const oci = path.join(directory, 'oci');
  await sourceImage(at('source'), random, 1);
  await pushed(at('source'), 's0', layout(oci, 'v1'));
  const blobs = path.join(oci, 'blobs', 'sha256');
  for (const name of await readdir(blobs)) {
    const file = path.join(blobs, name);
    const bytes = await readFile(file);
    const damaged = Buffer.from(bytes);
    damaged[random.below(bytes.length)]! ^= 1 << random.below(8);
    await writeFile(file, damaged);
    const error = await t.throwsAsync(
      pull(layout(oci, 'v1'), at('copy')),
      { instanceOf: PcowError },
      name,
    );
    t.is(error.code, 'PCOW_CORRUPT', error.message);
    await truncate(file, bytes.length - 1);
    const short = await t.throwsAsync(
      pull(layout(oci, 'v1'), at('copy')),
      { instanceOf: PcowError },
      name,
    );
    t.is(short.code, 'PCOW_CORRUPT', short.message);
    await writeFile(file, bytes);
  }
  await t.throwsAsync(stat(at('copy')));
  await pull(layout(oci, 'v1'), at('copy'));
  await isSame(t, [at('source'), 's0'], [at('copy'), 's0']);
  await t.throwsAsync(stat(hiddenName(at('copy'))));
});

test('an identity proves nothing: a local snapshot counts only with the content of the registry', async (t) => {
  const { at, random, directory } = await bench(t);
  const oci = path.join(directory, 'oci');
  await sourceImage(at('source'), random, 2);
  await pushed(at('source'), 's1', layout(oci, 'v1'));
  const origin = await reading(at('source'), (image) => image.snapshotInfo('s0'));
  await Image.create(at('forged'), { size: origin.size });
  await working(at('forged'), async (image) => {
    await image.write(Buffer.alloc(4096, 66), 0);
    await image.snapshot('s0', { identity: origin.identity, created: origin.created });
  });
  const before = await snapshotsOf(at('forged'));
  await failure(t, pull(layout(oci, 'v1'), at('forged')), 'PCOW_EXISTS', /content differs/);
  t.deepEqual(await snapshotsOf(at('forged')), before);
});
