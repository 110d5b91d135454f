/**
 * Random operations through a mount, compared with a plain in-memory model: flat files and
 * snapshots always equal it.
 */
import { execFile } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { ModelState } from '../engine/model.js';
import { effort } from '../helpers/effort.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';

const run = promisify(execFile);
const STEPS = effort(120, 2000, 'PCOW_MODEL_STEPS');
const SIZE = MiB;
const MAX_IMAGES = 4;
const MAX_SNAPSHOTS = 6;

interface ModelImage {
  name: string;
  active: ModelState;
  snapshots: Map<string, ModelState>;
  /** Names of this image's snapshots on which a clone stands: they cannot be deleted. */
  needed: Set<string>;
}

class Model {
  readonly images: ModelImage[] = [];
  #made = 0;

  constructor(
    readonly mount: TestMount,
    readonly random: Random,
    readonly tool: string,
  ) {}

  add(name: string, active: ModelState): ModelImage {
    const image = {
      name,
      active,
      snapshots: new Map<string, ModelState>(),
      needed: new Set<string>(),
    };
    this.images.push(image);
    return image;
  }

  newName(): string {
    this.#made += 1;
    return `x${this.#made}`;
  }

  /** A range; often whole pages or blocks. */
  range(): { offset: number; length: number } {
    const unit = this.random.pick([1, 512, 4096, 65_536]);
    const offset = this.random.below(SIZE / unit) * unit;
    const length = Math.min(
      SIZE - offset,
      unit * (1 + this.random.below(this.random.pick([2, 8]))),
    );
    return { offset, length };
  }

  async step(): Promise<void> {
    const image = this.random.pick(this.images);
    const kind = this.random.weighted({
      write: 30,
      mapped: 4,
      discard: 10,
      sync: 3,
      snapshot: 8,
      rollback: 4,
      delete: 5,
      clone: 2,
      remove: 1,
      reopen: 1,
      kill: 1,
    });
    const name = this.random.chance(0.5)
      ? [...image.snapshots.keys()][this.random.below(image.snapshots.size)]
      : undefined;
    switch (kind) {
      case 'write':
        return this.write(image);
      case 'mapped':
        return this.writeMapped(image);
      case 'discard':
        return this.discard(image);
      case 'sync':
        await run('sync', ['--data', this.mount.file(image.name)]);
        return;
      case 'snapshot':
        if (image.snapshots.size < MAX_SNAPSHOTS) {
          const made = this.newName();
          await this.mount.write(made, image.name, 'snapshot');
          image.snapshots.set(made, image.active.copy());
        }
        return;
      case 'rollback':
        if (name !== undefined) {
          await this.mount.write(name, image.name, 'rollback');
          image.active = (image.snapshots.get(name) ?? image.active).copy();
        }
        return;
      case 'delete':
        if (name !== undefined) await this.delete(image, name);
        return;
      case 'clone':
        if (this.images.length < MAX_IMAGES) await this.clone(image, name);
        return;
      case 'remove':
        if (this.images.at(-1) === image && this.images.length > 1) await this.remove(image);
        return;
      case 'reopen':
        await this.mount.unmount();
        return this.mount.mount();
      case 'kill':
        await this.mount.kill();
        return this.mount.mount();
    }
  }

  async write(image: ModelImage): Promise<void> {
    const { offset, length } = this.range();
    const bytes = this.random.fill(new Uint8Array(length));
    const file = await open(this.mount.file(image.name), 'r+');
    await file.write(bytes, 0, length, offset);
    await file.close();
    image.active.write(bytes, offset);
  }

  async writeMapped(image: ModelImage): Promise<void> {
    const { offset, length } = this.range();
    const value = 1 + this.random.below(255);
    const tool = await Conversation.start(this.mount.t, this.tool, this.mount.file(image.name));
    await tool.ask(`write ${offset} ${length} ${value}`);
    image.active.write(new Uint8Array(length).fill(value), offset);
    // A snapshot while it is mapped and not synced.
    if (this.random.chance(0.5) && image.snapshots.size < MAX_SNAPSHOTS) {
      const made = this.newName();
      await this.mount.write(made, image.name, 'snapshot');
      image.snapshots.set(made, image.active.copy());
    }
    await tool.end();
  }

  async discard(image: ModelImage): Promise<void> {
    const { offset, length } = this.range();
    await run('fallocate', [
      '--punch-hole',
      '-o',
      String(offset),
      '-l',
      String(length),
      this.mount.file(image.name),
    ]);
    image.active.discard(offset, length);
  }

  async delete(image: ModelImage, name: string): Promise<void> {
    if (image.needed.has(name)) {
      await this.mount.refused('EBUSY', name, image.name, 'delete');
      return;
    }
    await this.mount.write(name, image.name, 'delete');
    image.snapshots.delete(name);
  }

  async clone(image: ModelImage, snapshot: string | undefined): Promise<void> {
    const made = this.newName();
    await this.mount.write(
      snapshot === undefined ? made : `${made} ${snapshot}`,
      image.name,
      'clone',
    );
    const state =
      snapshot === undefined ? image.active : (image.snapshots.get(snapshot) ?? image.active);
    this.add(made, state.copy());
    // A clone of the present state stands on the newest layer: an automatic snapshot, or an
    // existing one.
    const lines = (await readFile(this.mount.control(image.name, 'snapshots'), 'utf8'))
      .trimEnd()
      .split('\n');
    const listed = lines.map((line) => JSON.parse(line) as { name: string; current: boolean });
    const base = snapshot ?? listed.find(({ current }) => current)?.name;
    if (base !== undefined) {
      image.needed.add(base);
      if (!image.snapshots.has(base)) image.snapshots.set(base, image.active.copy());
    }
  }

  /**
   * The newest image: nothing stands on it. The images on which it stood are still treated as
   * needed.
   */
  async remove(image: ModelImage): Promise<void> {
    if (image.needed.size > 0) return;
    await this.mount.write(image.name, image.name, 'remove');
    this.images.pop();
    for (const other of this.images) {
      for (const name of [...other.needed]) {
        if (!(await this.stoodOn(other, name))) other.needed.delete(name);
      }
    }
  }

  async stoodOn(image: ModelImage, name: string): Promise<boolean> {
    for (const other of this.images) {
      const opened = await Image.open(this.mount.image(other.name));
      const { base } = opened.info();
      await opened.close();
      if (base?.snapshot === name && base.resolved === this.mount.image(image.name)) return true;
    }
    return false;
  }

  async check(): Promise<void> {
    for (const { name, active, snapshots } of this.images) {
      this.compare(name, await readFile(this.mount.file(name)), active);
      for (const [snapshot, state] of snapshots) {
        this.compare(
          `${name}@${snapshot}`,
          await readFile(this.mount.control(name, 'at', snapshot)),
          state,
        );
      }
    }
  }

  compare(what: string, found: Buffer, wanted: ModelState): void {
    const bytes = wanted.read(0, SIZE);
    if (found.equals(bytes)) return;
    const at = found.findIndex((byte, index) => byte !== bytes[index]);
    throw new Error(`${what}: ${found[at]} in place of ${bytes[at]} at ${at}`);
  }
}

for (const blockSize of [4096, 65_536]) {
  test.serial(`${STEPS} random steps, blocks of ${blockSize}`, async (t) => {
    t.timeout(STEPS * 1000);
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const mount = await imagesFor(t, {});
    await Image.create(mount.image('first'), { size: SIZE, blockSize });
    await mount.mount();
    const model = new Model(mount, random, await program('map-tool', mount.scratch));
    model.add('first', new ModelState(SIZE));
    for (let step = 1; step <= STEPS; ++step) {
      await t.notThrowsAsync(model.step(), `seed ${random.seed}, step ${step}`);
      if (step % 20 === 0 || step === STEPS) {
        await t.notThrowsAsync(model.check(), `seed ${random.seed}, after step ${step}`);
      }
    }
  });
}
