/**
 * Every long reader of an image, with every change of structure by another opening in the middle of
 * it: the result is the content of one layer from beginning to end, or the reader fails with a
 * message. Never a mixture, never a part.
 */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { mapPicture } from '../../cli/output/map-picture.js';
import { compareContents } from '../../src/convert/compare.js';
import { imageContents } from '../../src/convert/contents.js';
import { copyContents } from '../../src/convert/copy.js';
import { Image, isPcowError, type LayerChoice } from '../../src/engine/index.js';
import { exportStream, importStream } from '../../src/stream/archive.js';
import { receive } from '../../src/stream/receive.js';
import { sendingOf, sendStream } from '../../src/stream/send.js';
import { AT_LENGTH } from '../helpers/effort.js';
import { bench, reading, working } from './images.js';

/** A chunk of a table covers 2 MiB of these blocks, so the walks need several batches. */
const BLOCK = 4096;
const CHUNK = 512 * BLOCK;
const CHUNKS = 300;

const FILES = ['ground', 'other', 'vm'] as const;

/** The sizes of files; they are nearly all holes. */
async function copySparse(...files: string[]): Promise<void> {
  await promisify(execFile)('cp', ['--sparse=always', '--', ...files]);
}

/** Writes `value` at the beginning of every `step`-th chunk from `first` on. */
async function mark(image: Image, value: number, first: number, step: number): Promise<void> {
  const bytes = Buffer.alloc(BLOCK, value);
  for (let chunk = first; chunk < CHUNKS; chunk += step) await image.write(bytes, chunk * CHUNK);
}

/** The content of a layer: the first byte of each chunk. */
async function marksOf(image: Image, layer?: LayerChoice): Promise<string> {
  const byte = Buffer.alloc(1);
  const marks: number[] = [];
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    marks.push((await image.read(byte, chunk * CHUNK, layer)) === 1 ? byte[0]! : 0);
  }
  return String.fromCharCode(...marks.map((mark) => mark || 46));
}

/**
 * vm (s1, s2, and s3 beside s2, on which it stands) on ground@b2; another base has different data
 * at one offset.
 */
async function family(at: (name: string) => string): Promise<void> {
  for (const name of ['ground', 'other'] as const) {
    await Image.create(at(name), { size: CHUNKS * CHUNK, blockSize: BLOCK });
    await working(at(name), async (image) => {
      await mark(image, 97, 0, 3);
      await image.snapshot('b1');
      await mark(image, 98, 1, 4);
      await image.snapshot('b2');
    });
  }
  await working(at('other'), async (image) => {
    await image.write(Buffer.alloc(BLOCK, 111), 299 * CHUNK);
    await image.snapshot('b3');
  });
  await Image.create(at('vm'), { base: { path: at('ground'), snapshot: 'b2' } });
  await working(at('vm'), async (image) => {
    await mark(image, 49, 0, 5);
    await image.snapshot('s1');
    await mark(image, 50, 2, 7);
    await image.snapshot('s2');
    await image.rollback('s1');
    await mark(image, 51, 3, 6);
    await image.snapshot('s3');
    await mark(image, 119, 1, 2);
    await image.resize((CHUNKS + 1) * CHUNK);
  });
}

type At = (name: string) => string;

const CHANGES: Record<string, (at: At) => Promise<unknown>> = {
  snapshot: (at) => working(at('vm'), (image) => image.snapshot('later')),
  'snapshot and writes': (at) =>
    working(at('vm'), async (image) => {
      await image.snapshot('later');
      await mark(image, 33, 0, 1);
      await image.snapshot('last');
    }),
  'delete s1': (at) => working(at('vm'), (image) => image.delete('s1')),
  'delete s3': (at) => working(at('vm'), (image) => image.delete('s3')),
  'replace s3': (at) =>
    working(at('vm'), async (image) => {
      await image.delete('s3');
      // Earlier writes may be visible in the present content of the image.
      await image.snapshot('between');
      await mark(image, 34, 0, 1);
      await image.snapshot('s3');
    }),
  'delete of the base': (at) => working(at('ground'), (image) => image.delete('b1')),
  'snapshot of the base': (at) => working(at('ground'), (image) => image.snapshot('b4')),
  rollback: (at) => working(at('vm'), (image) => image.rollback('s1')),
  rebase: (at) => working(at('vm'), (image) => image.rebase({ path: at('other'), snapshot: 'b3' })),
  flatten: (at) => working(at('vm'), (image) => image.rebase(null)),
  grow: (at) => working(at('vm'), (image) => image.resize((CHUNKS + 20) * CHUNK)),
  shrink: (at) => working(at('vm'), (image) => image.resize(CHUNKS * CHUNK, { shrink: true })),
  compact: (at) => working(at('vm'), (image) => image.compact()),
  checksums: (at) => working(at('vm'), (image) => image.addChecksums()),
  'delete all and commit': (at) =>
    working(at('vm'), async (image) => {
      for (const name of image.snapshotNames()) await image.delete(name);
      await working(at('ground'), (base) => image.commitInto(base, 'committed'));
    }),
  'rename of the base': async (at) => {
    await working(at('vm'), async (image) => {
      const layer = image.info().base!.layer;
      await copySparse(at('ground'), at('renamed'));
      await image.setBase({ path: at('renamed'), layer });
      await rm(at('ground'));
    });
  },
};

/**
 * The reader's result: the content for each name; '' stands for the present content of the image.
 */
type Seen = Record<string, string>;

interface Reading {
  image: Image;
  at: At;
  /** Called between any two steps of the reader. */
  step: () => Promise<void>;
}

async function* stepping<T>(
  source: AsyncIterable<T>,
  step: () => Promise<void>,
): AsyncGenerator<T> {
  await step();
  for await (const one of source) {
    yield one;
    await step();
  }
}

async function received(
  stream: AsyncIterable<Buffer>,
  { at, step }: Reading,
  name: string,
): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of stepping(stream, step)) pieces.push(piece);
  await receive(Readable.from(pieces), at('copy'));
  return reading(at('copy'), (image) => marksOf(image, name));
}

async function copied(reader: Reading, snapshot: string | null): Promise<string> {
  const contents = imageContents(reader.image, snapshot);
  const marks = Buffer.alloc(CHUNKS, 46);
  const paced = {
    ...contents,
    ranges: (signal?: AbortSignal) => stepping(contents.ranges(signal), reader.step),
  };
  await copyContents(paced, {
    write: (bytes, offset) => {
      for (let at = Math.ceil(offset / CHUNK) * CHUNK; at < offset + bytes.length; at += CHUNK) {
        if (at / CHUNK < CHUNKS) marks[at / CHUNK] = bytes[at - offset]!;
      }
      return Promise.resolve();
    },
  });
  return marks.toString();
}

const READERS: Record<string, (reader: Reading) => Promise<Seen>> = {
  export: async (reader) => {
    const pieces: Buffer[] = [];
    for await (const piece of stepping(exportStream(reader.image), reader.step)) pieces.push(piece);
    await importStream(Readable.from(pieces), reader.at('copy'));
    return reading(reader.at('copy'), async (image) => {
      const seen: Seen = { '': await marksOf(image) };
      for (const name of image.snapshotNames()) seen[name] = await marksOf(image, name);
      for (const name of ['b1', 'b2', 's1', 's2', 's3']) seen[name] ??= 'missing';
      return seen;
    });
  },
  send: async (reader) => ({
    s3: await received(
      sendStream(reader.image, await sendingOf(reader.image, 's3', null)),
      reader,
      's3',
    ),
  }),
  'send --from': async (reader) => {
    const { image, at } = reader;
    await receive(sendStream(image, await sendingOf(image, 's1', null)), at('copy'));
    return {
      s3: await received(sendStream(image, await sendingOf(image, 's3', 's1')), reader, 's3'),
    };
  },
  convert: async (reader) => ({ '': await copied(reader, null) }),
  'convert of a snapshot': async (reader) => ({ s3: await copied(reader, 's3') }),
  compare: async ({ image, at, step }) => {
    const kept = path.join(path.dirname(at('vm')), 'kept');
    await mkdir(kept);
    await copySparse(...FILES.map(at), kept);
    const left = imageContents(image, null);
    const right = imageContents(await Image.open(path.join(kept, 'vm.pcow')), null);
    try {
      const paced = {
        ...left,
        ranges: (signal?: AbortSignal) => stepping(left.ranges(signal), step),
      };
      const found = await compareContents(paced, right, { strict: false });
      return { '': found.same ? (before[''] ?? '') : 'different' };
    } finally {
      await right.close();
    }
  },
  // Only that every difference is listed: ranges that are listed in addition are read, too.
  diff: async ({ image, step }) => {
    const [older, newer] = [image.snapshotInfo('s1').id, image.snapshotInfo('s3').id];
    const marks = Buffer.from(await marksOf(image, older));
    const bytes = Buffer.alloc(1);
    for await (const { offset, length } of stepping(image.diff(older, newer), step)) {
      for (
        let at = Math.ceil(offset / CHUNK) * CHUNK;
        at < Math.min(offset + length, CHUNKS * CHUNK);
        at += CHUNK
      ) {
        await image.read(bytes, at, newer);
        marks[at / CHUNK] = bytes[0] === 0 ? 46 : bytes[0]!;
      }
    }
    return { s3: marks.toString() };
  },
  // With the depths of one chain.
  map: async ({ image, step }) => {
    const layer = image.layerOf(null);
    const depths = new Map<number, string>();
    const chain = await image.chainState(layer);
    for await (const { depth, layer: link } of stepping(
      image.map({ snapshot: layer, chain }),
      step,
    )) {
      if (depth === null || link === null) continue;
      const name = `${path.basename(link.path)} ${link.layer}`;
      if ((depths.get(depth) ?? name) !== name)
        return { '': `depth ${depth} is ${name}, and ${depths.get(depth)!}` };
      depths.set(depth, name);
    }
    return {};
  },
  picture: async ({ image, step }) => {
    let done: Promise<void> | undefined;
    await mapPicture(image, 'vm', null, {
      onProgress: () => {
        done ??= step();
      },
    });
    await done;
    return {};
  },
};

async function allOf(file: string): Promise<Seen> {
  return reading(file, async (image) => {
    const seen: Seen = { '': await marksOf(image) };
    for (const name of image.snapshotNames()) seen[name] = await marksOf(image, name);
    return seen;
  });
}

/** The family, which every race copies. */
let familyDirectory = '';
const original: At = (name) => path.join(familyDirectory, `${name}.pcow`);
/** Its contents; those of vm are different after a change. */
const bases: Seen = {};
const before: Seen = {};
/** After each change: the same whoever reads meanwhile, so they are read once. */
const contentsAfter = new Map<string, Seen>();

async function after(change: string, file: string): Promise<Seen> {
  const contents = contentsAfter.get(change) ?? { ...bases, ...(await allOf(file)) };
  contentsAfter.set(change, contents);
  return contents;
}

test.before(async () => {
  familyDirectory = await mkdtemp(path.join(tmpdir(), 'pcow-test-'));
  await family(original);
  await reading(original('ground'), async (image) => {
    for (const name of ['b1', 'b2']) bases[name] = await marksOf(image, name);
  });
  Object.assign(before, bases, await allOf(original('vm')));
});

test.after.always(() => rm(familyDirectory, { recursive: true, force: true }));

/** Makes a change when the reader has made this many steps, and returns the results of both. */
async function race(
  t: ExecutionContext,
  scratch: string,
  reader: string,
  change: string,
  moment: number,
) {
  const directory = path.join(scratch, 'round');
  const here: At = (name) => path.join(directory, `${name}.pcow`);
  await mkdir(directory);
  await copySparse(...FILES.map(original), directory);
  const image = await Image.open(here('vm'));
  let steps = 0;
  let changed = false;
  const step = async () => {
    if (steps++ < moment || changed) return;
    changed = true;
    await CHANGES[change]!(here);
  };
  const what = `${change} after ${moment} steps of ${reader}`;
  let outcome = 'read';
  try {
    const seen = await READERS[reader]!({ image, at: here, step });
    if (changed) {
      const later = await after(change, here('vm'));
      for (const [name, marks] of Object.entries(seen)) {
        t.true(
          marks === before[name] || marks === later[name],
          `${what}: ${name || 'now'} reads\n${marks}`,
        );
      }
    }
  } catch (error) {
    if (!isPcowError(error)) throw error;
    outcome = 'refused';
    t.regex(
      error.code,
      /^PCOW_(BUSY|NOT_FOUND|BASE_MISSING|BASE_CHANGED)$/,
      `${what}: ${error.message}`,
    );
  } finally {
    await image.close();
    await rm(directory, { recursive: true });
  }
  return { steps, outcome };
}

for (const reader of Object.keys(READERS)) {
  test.serial(`${reader}: what others change meanwhile`, async (t) => {
    t.timeout(600_000);
    const { directory, random } = await bench(t);
    const { steps } = await race(t, directory, reader, 'snapshot', Infinity);
    const outcomes: Record<string, string> = {};
    for (const change of Object.keys(CHANGES)) {
      // In one half, at length in each: an export is planned at its first step, and names that are
      // gone by then are not missed.
      const half = Math.ceil(steps / 2);
      const moments = [
        1 + random.below(Math.max(1, half - 1)),
        half + random.below(Math.max(1, steps - half)),
      ];
      for (const moment of AT_LENGTH ? moments : [random.pick(moments)]) {
        const { outcome } = await race(t, directory, reader, change, moment);
        outcomes[change] = `${outcomes[change] ?? ''} ${outcome}`;
      }
    }
    t.log(outcomes);
    // A change that only adds something is never in the way.
    for (const change of ['snapshot', 'snapshot of the base', 'grow', 'compact', 'checksums']) {
      t.regex(outcomes[change] ?? '', /^( read)+$/, change);
    }
  });
}
