/** Images with random sparse content, and helpers for tests of streams. */
import path from 'node:path';
import type { ExecutionContext } from 'ava';
import { compareContents } from '../../src/convert/compare.js';
import { imageContents } from '../../src/convert/contents.js';
import { Image } from '../../src/engine/index.js';
import { sendingOf, sendStream } from '../../src/stream/send.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';

export const MiB = 2 ** 20;

export interface Bench {
  directory: string;
  random: Random;
  /** The path of an image in the directory. */
  at: (name: string) => string;
}

export async function bench(t: ExecutionContext): Promise<Bench> {
  const random = new Random(seedFromEnvironment());
  t.log(`PCOW_SEED=${random.seed}`);
  const directory = await scratchDirectory(t);
  return { directory, random, at: (name) => path.join(directory, `${name}.pcow`) };
}

export async function working<T>(file: string, work: (image: Image) => Promise<T>): Promise<T> {
  const image = await Image.open(file, { write: true });
  try {
    return await work(image);
  } finally {
    await image.close();
  }
}

export async function reading<T>(file: string, work: (image: Image) => T | Promise<T>): Promise<T> {
  const image = await Image.open(file);
  try {
    return await work(image);
  } finally {
    await image.close();
  }
}

/** Writes and discards at random offsets, with bytes that are quick to make. */
export async function scribble(
  image: Image,
  random: Random,
  times: number,
  longest = 64,
): Promise<void> {
  const { size } = image.info();
  for (let i = 0; i < times; i++) {
    const length = 4096 * (1 + random.below(longest));
    const offset = 4096 * random.below((size - length) / 4096);
    if (random.chance(0.2)) await image.discard(offset, length);
    else await image.write(Buffer.alloc(length, 1 + random.below(255)), offset);
  }
}

/** The whole stream of a snapshot, in memory. */
export async function streamOf(
  file: string,
  snapshot: string,
  from: string | null,
): Promise<Buffer> {
  return reading(file, async (image) => {
    const pieces: Buffer[] = [];
    for await (const piece of sendStream(image, await sendingOf(image, snapshot, from)))
      pieces.push(piece);
    return Buffer.concat(pieces);
  });
}

/** In pieces as from a pipe. */
export async function* piecewise(bytes: Uint8Array, random: Random): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length;) {
    const length = 1 + random.below(200_000);
    yield bytes.subarray(at, at + length);
    at += length;
    await Promise.resolve();
  }
}

export async function isSame(
  t: ExecutionContext,
  [one, snapshot]: [string, string | null],
  [other, otherSnapshot]: [string, string | null],
): Promise<void> {
  const left = imageContents(await Image.open(one), snapshot);
  const right = imageContents(await Image.open(other), otherSnapshot);
  t.is(left.size, right.size);
  t.deepEqual(
    await compareContents(left, right, { strict: false }),
    { same: true },
    `${one} ${snapshot ?? ''}`,
  );
  await left.close();
  await right.close();
}

export async function snapshotsOf(file: string): Promise<Record<string, string>> {
  return reading(file, (image) =>
    Object.fromEntries(
      image.snapshots({ countData: false }).map(({ name, identity }) => [name, identity]),
    ),
  );
}
