/**
 * Random families of images: every export can be imported, every stream can be received, and each
 * snapshot reads as before.
 */
import { Readable } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import { Image, type LayerInfo } from '../../src/engine/index.js';
import { exportStream, importStream } from '../../src/stream/archive.js';
import { receive } from '../../src/stream/receive.js';
import type { Random } from '../helpers/random.js';
import {
  bench,
  type Bench,
  isSame,
  MiB,
  piecewise,
  reading,
  scribble,
  streamOf,
  working,
} from './images.js';

/** Possible names of files; some equal names of snapshots, or have the maximal length. */
const FILES = [
  'vm',
  'my vm',
  'vm@home',
  'ü'.repeat(120),
  'a\tb',
  's',
  'deleted-2',
  'x'.repeat(249),
] as const;
const SNAPSHOTS = [
  's',
  'vm.s',
  'deleted-2',
  'a\u00a0b',
  '雪',
  '-',
  '...',
  's'.repeat(255),
  'é'.repeat(127),
] as const;

/** A name that the image does not have yet. */
function freshName(image: Image, random: Random): string {
  const taken = new Set(image.snapshotNames());
  const free = SNAPSHOTS.filter((name) => !taken.has(name));
  return free.length > 0 ? random.pick(free) : `n${taken.size}-${random.below(1e9)}`;
}

async function change(image: Image, random: Random): Promise<void> {
  const names = image.snapshotNames();
  const kind = random.weighted({
    write: 4,
    snapshot: 4,
    received: 1,
    grow: 1,
    rollback: 3,
    delete: 3,
    freeze: 1,
  });
  if (kind === 'write') await scribble(image, random, 1 + random.below(4), 16);
  if (kind === 'snapshot') await image.snapshot(freshName(image, random));
  if (kind === 'received') {
    const identity = (BigInt(random.below(2 ** 30)) + (1n << 40n)).toString(16).padStart(16, '0');
    await image.snapshot(freshName(image, random), {
      identity,
      created: new Date(random.pick([0, -1000, 86_400_000])),
    });
  }
  if (kind === 'grow') await image.resize(image.info().size + 4096 * (1 + random.below(200)));
  if (kind === 'rollback' && names.length > 0) await image.rollback(random.pick(names));
  if (kind === 'delete' && names.length > 0) await image.delete(random.pick(names));
  if (kind === 'freeze') await image.freezeForClone(`auto-${random.below(1e9)}`);
}

/** One to three images, each on the next. Returns their names, the last base first. */
async function family({ at, random }: Bench, round: number, taken: Set<string>): Promise<string[]> {
  const files: string[] = [];
  const blockSize = random.pick([4096, 8192, 65536]);
  const count = 1 + random.below(3);
  while (files.length < count) {
    const name =
      `${random.pick(FILES)}`.slice(0, 240) +
      (files.length === 0 && random.chance(0.5) ? '' : `${round}`);
    if (taken.has(name)) continue; // of an earlier family, on which others stand
    taken.add(name);
    const below = files.at(-1);
    if (below === undefined) {
      await Image.create(at(name), { size: MiB, blockSize, force: true });
    } else {
      const layer = await working(at(below), (image) => standingPlace(image, random));
      await Image.create(at(name), { base: { path: at(below), layer }, force: true });
    }
    files.push(name);
    await working(at(name), async (image) => {
      for (let step = random.below(25); step >= 0; step--) await change(image, random);
    });
  }
  // The bases are written further, away from the snapshots on which others stand.
  for (const name of files.slice(0, -1))
    await working(at(name), (image) => scribble(image, random, 3, 16));
  return files;
}

async function standingPlace(image: Image, random: Random): Promise<number> {
  const names = image.snapshotNames();
  if (names.length > 0 && random.chance(0.6)) return image.layerOf(random.pick(names));
  return image.freezeForClone(`for-clone-${random.below(1e9)}`);
}

/**
 * The snapshots of an image that its export contains: all, or, for a base, those below the layer
 * that is stood on.
 */
function exportedOf(image: Image, top: number | null): LayerInfo[] {
  const layers = image.layers();
  if (top === null) return layers.filter(({ name }) => name !== null);
  const found: LayerInfo[] = [];
  let next = layers.find(({ id }) => id === top);
  while (next !== undefined) {
    const { name, parent } = next;
    if (name !== null) found.push(next);
    next = layers.find(({ id }) => id === parent);
  }
  return found;
}

/** Everything in the chain is in `copy`: compared by identity, because names may have changed. */
async function holdsAll(
  t: ExecutionContext,
  { at }: Bench,
  files: string[],
  copy: string,
): Promise<void> {
  const arrived = await reading(at(copy), (image) => image.snapshots());
  let count = 0;
  let top: number | null = null;
  for (const name of [...files].reverse()) {
    const { expected, base } = await reading(at(name), (image) => ({
      expected: exportedOf(image, top),
      base: image.info().base,
    }));
    for (const { name: snapshot, identity, created, size } of expected) {
      const same = arrived.find((one) => one.identity === identity);
      t.truthy(same, `${name}@${snapshot!}`);
      t.deepEqual(same!.created, created);
      t.is(same!.size, size);
      await isSame(t, [at(name), snapshot], [at(copy), same!.name]);
      count++;
    }
    top = base?.layer ?? null;
  }
  t.is(arrived.length, count);
  await isSame(t, [at(files.at(-1)!), null], [at(copy), null]);
}

test('every export can be imported, and reads the same at every snapshot', async (t) => {
  t.timeout(600_000);
  const given = await bench(t);
  const { at, random } = given;
  const taken = new Set<string>();
  for (let round = 0; round < 25; round++) {
    const files = await family(given, round, taken);
    const bytes = await reading(at(files.at(-1)!), async (image) => {
      const pieces: Buffer[] = [];
      for await (const piece of exportStream(image)) pieces.push(piece);
      return Buffer.concat(pieces);
    });
    const copy = `copy ${round}`;
    await importStream(piecewise(bytes, random), at(copy));
    await holdsAll(t, given, files, copy);
    // An imported image can also be exported.
    const again = await reading(at(copy), (image) => collect(exportStream(image)));
    await importStream(Readable.from([again]), at(`again ${round}`));
    await isSame(t, [at(copy), null], [at(`again ${round}`), null]);
  }
});

test('every stream can be received, and reads the same', async (t) => {
  t.timeout(600_000);
  const given = await bench(t);
  const { at, random } = given;
  const taken = new Set<string>();
  for (let round = 0; round < 25; round++) {
    const name = (await family(given, round, taken)).at(-1)!;
    const copy = `copy ${round}`;
    const snapshots = await reading(at(name), (image) => image.snapshots());
    const has: string[] = [];
    for (const { name: snapshot, size } of snapshots) {
      const smaller = snapshots.filter((one) => has.includes(one.name) && one.size <= size);
      if (has.length > 0 && smaller.length === 0) continue;
      const from = smaller.length === 0 ? null : random.pick(smaller).name;
      await receive(piecewise(await streamOf(at(name), snapshot, from), random), at(copy));
      has.push(snapshot);
    }
    for (const snapshot of has) {
      await isSame(t, [at(name), snapshot], [at(copy), snapshot]);
      const of = (file: string) => reading(at(file), (image) => image.snapshotInfo(snapshot));
      const [sent, arrived] = [await of(name), await of(copy)];
      t.is(arrived.identity, sent.identity);
      t.deepEqual(arrived.created, sent.created);
    }
  }
});

async function collect(bytes: AsyncIterable<Buffer>): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of bytes) pieces.push(piece);
  return Buffer.concat(pieces);
}

test('an image whose oldest snapshot is deleted below two branches, the active one smaller than the other', async (t) => {
  const given = await bench(t);
  const { at, random } = given;
  await Image.create(at('vm'), { size: MiB });
  await working(at('vm'), async (image) => {
    await scribble(image, random, 10);
    await image.snapshot('gone');
    await image.resize(2 * MiB);
    await scribble(image, random, 10);
    await image.snapshot('large');
    await image.rollback('gone');
    await scribble(image, random, 10);
    await image.delete('gone');
  });
  const bytes = await reading(at('vm'), (image) => collect(exportStream(image)));
  const { snapshots, size } = await importStream(piecewise(bytes, random), at('copy'));
  t.deepEqual([snapshots, size], [1, MiB]);
  await holdsAll(t, given, ['vm'], 'copy');
  // As in the image: once, below both.
  const layers = await reading(at('copy'), (image) => image.layers());
  t.deepEqual(
    layers.map(({ name, hidden, parent }) => [name, hidden, parent]),
    [
      [null, true, null],
      ['large', false, layers[0]!.id],
      [null, false, layers[0]!.id],
    ],
  );
});
