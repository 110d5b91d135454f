/**
 * Random changes of the index, the frames, the config and the manifest of an image, under digests
 * that are right: each pull ends with an error, or with the image that the changed bytes describe.
 *
 * PCOW_SEED=… repeats a run, and PCOW_MUTATIONS=… says how many pulls it has.
 */
import { randomBytes } from 'node:crypto';
import { readdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { checkImage, decompressed, Image, isPcowError } from '../../src/engine/index.js';
import { digestOf, sha256 } from '../../src/registry/digest.js';
import { hiddenName } from '../../src/registry/hidden-image.js';
import { pullImage, pushImage } from '../../src/registry/index.js';
import { LayoutStore } from '../../src/registry/layout.js';
import { blobOf } from '../../src/registry/manifest.js';
import {
  IndexBuilder,
  PIECE,
  PieceIndex,
  runsOf,
  UNIT,
  UNITS,
} from '../../src/registry/piece-index.js';
import { type LayoutReference, parseReference } from '../../src/registry/reference.js';
import { readWhole } from '../../src/registry/store.js';
import { effort } from '../helpers/effort.js';
import type { Random } from '../helpers/random.js';
import { bench, MiB, reading, working } from '../stream/images.js';

const HEADER = 64;
const RECORD = 112;
/** What an error may say about content of a registry. */
const CODES = ['PCOW_CORRUPT', 'PCOW_UNSUPPORTED', 'PCOW_NOT_AN_IMAGE'] as const;

/** Changes some bytes, mostly of one record, to random and to extreme values. */
function mutate(bytes: Buffer, random: Random): Buffer {
  const changed = Buffer.from(bytes);
  const record = HEADER + RECORD * random.below(Math.max(1, (bytes.length - HEADER) / RECORD));
  for (let times = 1 + random.below(3); times > 0; times--) {
    const at = Math.min(
      changed.length - 1,
      random.chance(0.8) ? record + random.below(RECORD) : random.below(changed.length),
    );
    const kind = random.below(4);
    if (kind === 0) changed[at]! ^= 1 << random.below(8);
    else if (kind === 1) changed[at] = random.pick([0, 1, 0x7f, 0x80, 0xff]);
    else if (kind === 2)
      changed.fill(random.pick([0, 0xff]), at & ~7, Math.min(changed.length, (at & ~7) + 8));
    else copyRecord(changed, record, random);
  }
  const length = random.chance(0.9) ? changed.length : random.below(changed.length + 1);
  return random.chance(0.05) ? Buffer.concat([changed, changed]) : changed.subarray(0, length);
}

/** Puts a record over another one. */
function copyRecord(bytes: Buffer, to: number, random: Random): void {
  const from = HEADER + RECORD * random.below(4);
  bytes.copyWithin(to, from, Math.min(bytes.length, from + RECORD));
}

test('an index with changed bytes is refused, or keeps its promises', async (t) => {
  const { random } = await bench(t);
  const size = 40 * PIECE + 5 * UNIT;
  let accepted = 0;
  for (let round = effort(1000, 500_000); round > 0; round--) {
    const builder = new IndexBuilder();
    let stored = 0;
    for (let number = random.below(3); number < 41; number += 1 + random.below(30)) {
      const units = number === 40 ? 5 : UNITS;
      const bit = () => (random.chance(0.2) ? 0n : 1n << BigInt(random.below(units)));
      const data = bit() | bit();
      const zero = (bit() | bit() | (data === 0n ? 1n : 0n)) & ~data;
      const length = data === 0n ? 0 : 1 + random.below(PIECE);
      const digest = randomDigest(random);
      builder.add({ number, data, zero, stored: length, digest, content: digest });
      stored += length;
    }
    const changed = mutate(builder.finish(size), random);
    let index: PieceIndex;
    try {
      index = PieceIndex.parse(changed, size, stored, 'the index');
    } catch (error) {
      t.true(isPcowError(error, ...CODES), `PCOW_SEED=${random.seed}: ${String(error)}`);
      continue;
    }
    accepted++;
    let [last, place, data] = [0, 0, 0];
    for (const piece of index.pieces()) {
      for (const { kind, offset, length } of runsOf(piece)) {
        const inside = offset >= last && offset >= piece.number * PIECE && offset + length <= size;
        if (!inside || offset + length > (piece.number + 1) * PIECE)
          t.fail(`PCOW_SEED=${random.seed}: a run at ${offset}`);
        if (kind === 'data') data += length;
        last = offset + length;
      }
      if (piece.place !== place || piece.stored > PIECE + UNIT)
        t.fail(`PCOW_SEED=${random.seed}: a frame at ${piece.place}`);
      place += piece.stored;
    }
    t.deepEqual([place, data], [stored, index.data], `PCOW_SEED=${random.seed}`);
  }
  t.true(accepted > 0);
});

function randomDigest(random: Random): Buffer {
  return sha256(Buffer.from(String(random.next())));
}

interface Layer {
  size: number;
  bytes: number;
  index: Named;
  data: Named | null;
}

interface Named {
  digest: string;
  size: number;
}

interface Config {
  layers: Layer[];
}

interface Manifest {
  config: Named;
  layers: (Named & { mediaType: string })[];
}

/** An image in a layout: its blobs, which can be changed. */
class Artifact {
  private constructor(
    private readonly directory: string,
    readonly manifest: Manifest,
    readonly config: Config,
    readonly blobs: Map<string, Buffer>,
  ) {}

  static async read(directory: string): Promise<Artifact> {
    const store = new LayoutStore(parseReference(`oci:${directory}:v1`) as LayoutReference);
    const manifest = JSON.parse((await store.readManifest()).toString()) as Manifest;
    const blobs = new Map<string, Buffer>();
    for (const blob of [manifest.config, ...manifest.layers])
      blobs.set(blob.digest, await readWhole(store, blob));
    const config = JSON.parse(String(blobs.get(manifest.config.digest))) as Config;
    return new Artifact(directory, manifest, config, blobs);
  }

  copy(): Artifact {
    const { directory, manifest, config, blobs } = this;
    return new Artifact(
      directory,
      structuredClone(manifest),
      structuredClone(config),
      new Map(blobs),
    );
  }

  bytesOf({ digest }: Named): Buffer {
    return this.blobs.get(digest)!;
  }

  /** Replaces a blob, wherever it is named. */
  replace(named: Named, bytes: Buffer): void {
    const { digest } = named;
    const blob = blobOf(bytes);
    this.blobs.set(blob.digest, bytes);
    for (const each of [
      named,
      ...this.manifest.layers,
      ...this.config.layers.flatMap(({ index, data }) => (data === null ? [index] : [index, data])),
    ]) {
      if (each.digest === digest) Object.assign(each, blob);
    }
  }

  /** `text` changes the JSON of the config and the manifest. */
  async write(text: (json: string, what: 'config' | 'manifest') => string): Promise<void> {
    const config = Buffer.from(text(JSON.stringify(this.config), 'config'));
    this.replace(this.manifest.config, config);
    const manifest = Buffer.from(text(JSON.stringify(this.manifest), 'manifest'));
    this.blobs.set(digestOf(manifest), manifest);
    const place = (digest: string) => path.join(this.directory, 'blobs/sha256', digest.slice(7));
    for (const [digest, bytes] of this.blobs) await writeFile(place(digest), bytes);
    const entry = {
      ...{ mediaType: 'application/vnd.oci.image.manifest.v1+json', ...blobOf(manifest) },
      annotations: { 'org.opencontainers.image.ref.name': 'v1' },
    };
    await writeFile(
      path.join(this.directory, 'index.json'),
      JSON.stringify({ schemaVersion: 2, manifests: [entry] }),
    );
  }

  /** What the blobs say that the image holds, as docs/registry.md has it. */
  async content(): Promise<Buffer> {
    const { layers } = this.config;
    const image = Buffer.alloc(layers.at(-1)!.size);
    for (const { size, index, data } of layers) {
      const blob = data === null ? Buffer.alloc(0) : this.bytesOf(data);
      for (const piece of PieceIndex.parse(this.bytesOf(index), size, blob.length, '').pieces()) {
        const runs = [...runsOf(piece)];
        const length = runs.reduce((sum, run) => sum + (run.kind === 'data' ? run.length : 0), 0);
        const frame = blob.subarray(piece.place, piece.place + piece.stored);
        const bytes = length === 0 ? frame : await decompressed(frame, length);
        let at = 0;
        for (const run of runs) {
          if (run.kind === 'zero') image.fill(0, run.offset, run.offset + run.length);
          else at += bytes.copy(image, run.offset, at, at + run.length);
        }
      }
    }
    return image;
  }
}

/** A change of the text that may leave it JSON. */
function mutateText(text: string, random: Random): string {
  const numbers = [...text.matchAll(/\d+|"[^"]*"|null/g)];
  const { index, 0: old } = random.pick(numbers);
  const value = random.pick([
    ...['0', '-1', '1e30', 'null', '""', '[]', '{}', '4096', '9007199254740993', '"a/b"', 'true'],
    ...[old.slice(0, -1), `${old}0`, random.pick(numbers)[0]],
  ]);
  return text.slice(0, index) + value + text.slice(index + old.length);
}

test('an image with changed bytes is refused, or is what these bytes say', async (t) => {
  const { at, random, directory } = await bench(t);
  const layout = path.join(directory, 'layout');
  await Image.create(at('source'), { size: 2 * MiB, blockSize: 4096 });
  await working(at('source'), async (image) => {
    for (const name of ['v1', 'v2']) {
      await image.write(randomBytes(64 * 1024), 4096 * random.below(400));
      await image.write(Buffer.alloc(512 * 1024, name), 4096 * random.below(300));
      if (name === 'v2') await image.discard(4096 * random.below(300), MiB / 2);
      await image.snapshot(name);
    }
  });
  await reading(at('source'), (image) => pushImage(image, 'v2', `oci:${layout}:v1`));
  const original = await Artifact.read(layout);
  const pulling = () => pullImage(`oci:${layout}:v1`, at('copy'));
  let made = 0;
  for (let round = effort(40, 20_000, 'PCOW_MUTATIONS'); round > 0; round--) {
    const changed = original.copy();
    const layer = random.pick(changed.config.layers);
    const { data } = layer;
    const kind = random.pick(['index', 'index', 'frame', 'config', 'manifest', 'masks'] as const);
    if (kind === 'index')
      changed.replace(layer.index, mutate(changed.bytesOf(layer.index), random));
    if (kind === 'masks')
      changed.replace(layer.index, swapMasks(changed.bytesOf(layer.index), random));
    if (kind === 'frame' && data !== null) {
      const frames = mutate(changed.bytesOf(data), random);
      const index = Buffer.from(changed.bytesOf(layer.index));
      for (let record = HEADER; record < index.length; record += RECORD) {
        const [place, length] = [index.readUInt32LE(record + 8), index.readUInt32LE(record + 16)];
        if (length > 0) sha256(frames.subarray(place, place + length)).copy(index, record + 48);
      }
      changed.replace(data, frames);
      changed.replace(layer.index, index);
    }
    await changed.write((text, what) => (what === kind ? mutateText(text, random) : text));
    const seed = `PCOW_SEED=${random.seed}, ${kind}`;
    try {
      await pulling();
    } catch (error) {
      const code = isPcowError(error) ? error.code : String(error);
      t.true((CODES as readonly string[]).includes(code), `${seed}: ${String(error)}`);
      t.false((await readdir(directory)).includes('copy.pcow'), seed);
      continue;
    }
    made++;
    const { damages, leaks } = await checkImage(at('copy'));
    t.deepEqual([damages, leaks], [0, 0], seed);
    if (kind !== 'config' && kind !== 'manifest') {
      const bytes = Buffer.alloc(2 * MiB);
      await reading(at('copy'), (image) => image.read(bytes, 0));
      // Damaged frames: it has these bytes from an earlier try, and their content is the right one.
      const described = await (kind === 'frame' ? original : changed).content();
      t.true(bytes.equals(described), seed);
    }
    await rm(at('copy'));
  }
  t.log(`${made} of them were images`);
  await original.write((text) => text);
  await pulling();
  const [source, copy] = [Buffer.alloc(2 * MiB), Buffer.alloc(2 * MiB)];
  await reading(at('source'), (image) => image.read(source, 0, 'v2'));
  await reading(at('copy'), (image) => image.read(copy, 0));
  t.true(source.equals(copy), 'what was left hidden has no influence');
  t.false((await readdir(directory)).includes(path.basename(hiddenName(at('copy')))));
});

/** Another piece of zeros: often still an index. */
function swapMasks(bytes: Buffer, random: Random): Buffer {
  const changed = Buffer.from(bytes);
  const record = HEADER + RECORD * random.below((bytes.length - HEADER) / RECORD);
  const [data, zero] = [changed.readBigUInt64LE(record + 24), changed.readBigUInt64LE(record + 32)];
  const other = (zero ^ (1n << BigInt(random.below(UNITS)))) & ~data;
  changed.writeBigUInt64LE(other, record + 32);
  return changed;
}
