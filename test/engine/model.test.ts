/**
 * Random operations on images and on a plain in-memory model of them: the images always equal the
 * model. The seed is printed; set PCOW_SEED to repeat a run. A failure prints the last operations,
 * one on each line.
 */
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { effort } from '../helpers/effort.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { ModelImage, ModelState } from './model.js';

const seed = seedFromEnvironment();

const WEIGHTS = {
  write: 50,
  compare: 30,
  discard: 10,
  sync: 1,
  snapshot: 1.2,
  rollback: 0.6,
  delete: 0.9,
  clone: 0.25,
  reopen: 0.5,
  resize: 0.2,
};

const MAX_IMAGES = 8;
const MAX_DEPTH = 5;
const MAX_SNAPSHOTS = 12;

interface Pair {
  image: Image;
  model: ModelImage;
}

class World {
  readonly pairs: Pair[] = [];
  readonly #trace: string[] = [];
  #names = 0;

  constructor(
    readonly t: ExecutionContext<unknown>,
    readonly directory: string,
    readonly random: Random,
    readonly blockSize: number,
    readonly maxSize: number,
  ) {}

  async run(size: number, steps: number): Promise<void> {
    const first = path.join(this.directory, 'image0.pcow');
    await Image.create(first, { size, blockSize: this.blockSize });
    this.pairs.push({
      image: await Image.open(first, { write: true }),
      model: new ModelImage(first, new ModelState(size), null, 0),
    });
    try {
      for (let step = 1; step <= steps; ++step) {
        await this.step();
        if (step % 2000 === 0 || step === steps) await this.compareAll();
      }
    } catch (error) {
      this.t.log(
        `seed ${seed}, block size ${this.blockSize}; the last operations:\n${this.#trace.join('\n')}`,
      );
      throw error;
    } finally {
      for (const { image } of this.pairs) await image.close();
    }
  }

  async step(): Promise<void> {
    const pair = this.random.pick(this.pairs);
    const operation = this.random.weighted(WEIGHTS);
    switch (operation) {
      case 'write':
        return this.write(pair);
      case 'compare':
        return this.compareSome(pair);
      case 'discard':
        return this.discard(pair);
      case 'sync':
        this.note(pair, 'sync');
        return pair.image.sync();
      case 'snapshot':
        return this.snapshot(pair);
      case 'rollback':
        return this.rollback(pair);
      case 'delete':
        return this.delete(pair);
      case 'clone':
        return this.clone(pair);
      case 'reopen':
        return this.reopen(pair);
      case 'resize':
        return this.resize(pair);
    }
  }

  note({ model }: Pair, what: string): void {
    this.#trace.push(`${path.basename(model.path)}: ${what}`);
    if (this.#trace.length > 60) this.#trace.shift();
  }

  /** Any offset and length: single bytes, whole blocks, ranges over several blocks. */
  range(size: number): { offset: number; length: number } {
    const longest = this.random.pick([
      16,
      4096,
      this.blockSize,
      Math.min(2 * this.blockSize + 5000, 1 << 20),
    ]);
    let offset = this.random.below(size);
    let length = 1 + this.random.below(longest);
    if (this.random.chance(0.5)) {
      const unit = this.random.pick([4096, this.blockSize]);
      offset = Math.floor(offset / unit) * unit;
      length = Math.ceil(length / unit) * unit;
    }
    return { offset, length: Math.min(length, size - offset) };
  }

  async write(pair: Pair): Promise<void> {
    const { offset, length } = this.range(pair.model.active.size);
    this.note(pair, `write ${offset} ${length}`);
    // Zeros now and then: they are data like any other.
    const bytes = new Uint8Array(length);
    if (this.random.chance(0.9)) bytes.fill(1 + this.random.below(255));
    if (length > 8) this.random.fill(bytes.subarray(0, 8));
    pair.model.active.write(bytes, offset);
    await pair.image.write(bytes, offset);
  }

  async discard(pair: Pair): Promise<void> {
    const { offset, length } = this.range(pair.model.active.size);
    this.note(pair, `discard ${offset} ${length}`);
    pair.model.active.discard(offset, length);
    await pair.image.discard(offset, length);
  }

  async snapshot(pair: Pair): Promise<void> {
    if (pair.model.snapshots.length >= MAX_SNAPSHOTS) return;
    const name = `s${this.#names++}`;
    this.note(pair, `snapshot ${name}`);
    await pair.image.snapshot(name);
    this.modelSnapshot(pair, name, pair.image.layerOf(name));
  }

  modelSnapshot({ model }: Pair, name: string, layer: number): void {
    model.snapshots.push({ name, layer, state: model.active.copy() });
  }

  async rollback(pair: Pair): Promise<void> {
    if (pair.model.snapshots.length === 0) return;
    const { name, state } = this.random.pick(pair.model.snapshots);
    this.note(pair, `rollback ${name}`);
    await pair.image.rollback(name);
    pair.model.active = state.copy();
  }

  async delete(pair: Pair): Promise<void> {
    const { image, model } = pair;
    const free = model.snapshots.filter(
      ({ layer }) =>
        !this.pairs.some(
          ({ model: { base } }) => base?.path === model.path && base.layer === layer,
        ),
    );
    if (free.length === 0) return;
    const { name } = this.random.pick(free);
    this.note(pair, `delete ${name}`);
    await image.delete(name);
    model.snapshots = model.snapshots.filter((snapshot) => snapshot.name !== name);
  }

  async clone(pair: Pair): Promise<void> {
    const { image, model } = pair;
    if (this.pairs.length >= MAX_IMAGES || model.depth >= MAX_DEPTH) return;
    let layer: number;
    let state: ModelState;
    if (model.snapshots.length > 0 && this.random.chance(0.5)) {
      const snapshot = this.random.pick(model.snapshots);
      ({ layer, state } = snapshot);
    } else {
      const name = `auto${this.#names++}`;
      layer = await image.freezeForClone(name);
      state = model.active;
      if (image.snapshotNames().includes(name)) this.modelSnapshot(pair, name, layer);
    }
    const clonePath = path.join(this.directory, `image${this.#names++}.pcow`);
    this.note(pair, `clone ${path.basename(clonePath)} at layer ${layer}`);
    await Image.create(clonePath, { base: { path: model.path, layer } });
    this.pairs.push({
      image: await Image.open(clonePath, { write: true, baseRoot: this.directory }),
      model: new ModelImage(clonePath, state.copy(), { path: model.path, layer }, model.depth + 1),
    });
  }

  async reopen(pair: Pair): Promise<void> {
    this.note(pair, 'reopen');
    await pair.image.close();
    pair.image = await Image.open(pair.model.path, { write: true });
  }

  async resize(pair: Pair): Promise<void> {
    const size = pair.model.active.size + 4096 * (1 + this.random.below(40));
    if (size > this.maxSize) return;
    this.note(pair, `resize ${size}`);
    await pair.image.resize(size);
    pair.model.active = pair.model.active.resized(size);
  }

  /** A range of the active layer, or of a snapshot. */
  async compareSome(pair: Pair): Promise<void> {
    const { model } = pair;
    const snapshot =
      model.snapshots.length > 0 && this.random.chance(0.3)
        ? this.random.pick(model.snapshots)
        : undefined;
    const state = snapshot?.state ?? model.active;
    const { offset, length } = this.range(state.size);
    await this.compare(pair, state, offset, length, snapshot?.name);
  }

  async compareAll(): Promise<void> {
    for (const pair of this.pairs) {
      const { image, model } = pair;
      this.t.deepEqual(
        image.snapshots().map(({ name, id, size }) => ({ name, layer: id, size })),
        model.snapshots.map(({ name, layer, state }) => ({ name, layer, size: state.size })),
      );
      this.t.is(image.info().size, model.active.size);
      await this.compare(pair, model.active, 0, model.active.size);
      for (const { name, state } of model.snapshots)
        await this.compare(pair, state, 0, state.size, name);
    }
  }

  async compare(
    { image, model }: Pair,
    state: ModelState,
    offset: number,
    length: number,
    name?: string,
  ) {
    const bytes = new Uint8Array(length).fill(0xaa);
    const count = await image.read(bytes, offset, name);
    const expected = state.read(offset, length);
    if (count === length && Buffer.compare(bytes, expected) === 0) return;
    const wrong = bytes.findIndex((byte, i) => byte !== expected[i]);
    const where = `${path.basename(model.path)}${name === undefined ? '' : `@${name}`}`;
    throw new Error(
      `${where}: ${count} of ${length} bytes read at ${offset}; the first wrong one at ${offset + wrong} is ` +
        `${bytes[wrong]}, should be ${expected[wrong]}`,
    );
  }
}

const CASES = [
  { blockSize: 4096, size: 65536, maxSize: 2 << 20, steps: effort(2500, 9000) },
  { blockSize: 16384, size: 1 << 20, maxSize: 3 << 20, steps: effort(2000, 6000) },
  { blockSize: 65536, size: (4 << 20) + 4096, maxSize: 6 << 20, steps: effort(2000, 8000) },
  { blockSize: 2 << 20, size: 8 << 20, maxSize: 9 << 20, steps: effort(700, 2500) },
];

for (const { blockSize, size, maxSize, steps } of CASES) {
  test.serial(
    `images equal the model: ${steps} operations, blocks of ${blockSize} bytes`,
    async (t) => {
      t.log(`PCOW_SEED=${seed}`);
      const directory = await scratchDirectory(t);
      await new World(t, directory, new Random(seed + blockSize), blockSize, maxSize).run(
        size,
        steps,
      );
      t.pass();
    },
  );
}
