/**
 * map, diff, compare and measure, compared with the qemu-img commands of these names on the same
 * data.
 */
import { execFile } from 'node:child_process';
import { open, truncate } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds } from './outcome.js';

const run = promisify(execFile);
const MiB = 2 ** 20;
const SIZE = 64 * MiB;
/** Nothing is written behind this offset. */
const EMPTY = 56 * MiB;

/** `vm1.pcow` with a base and two snapshots, and `vm1.raw` with the same content, sparse. */
async function samePair(t: ExecutionContext) {
  const random = new Random(seedFromEnvironment());
  t.log(`PCOW_SEED=${random.seed}`);
  const directory = await scratchDirectory(t);
  const raw = await open(path.join(directory, 'vm1.raw'), 'w');
  await raw.truncate(SIZE);
  const fill = async (image: Image) => {
    for (let i = 0; i < 20; i++) {
      const bytes = random.fill(Buffer.alloc(4096 * (1 + random.below(40))));
      const offset = 4096 * random.below((EMPTY - bytes.length) / 4096);
      await image.write(bytes, offset);
      await raw.write(bytes, 0, bytes.length, offset);
    }
  };
  const base = path.join(directory, 'base.pcow');
  await Image.create(base, { size: SIZE });
  const below = await Image.open(base, { write: true });
  await fill(below);
  await below.snapshot('installed');
  await below.close();
  await Image.create(path.join(directory, 'vm1.pcow'), {
    base: { path: base, snapshot: 'installed' },
  });
  const image = await Image.open(path.join(directory, 'vm1.pcow'), { write: true });
  await fill(image);
  await image.snapshot('monday');
  await fill(image);
  await image.close();
  await raw.close();
  return { directory, pcow: pcowIn(directory) };
}

interface MapEntry {
  start: number;
  length: number;
  data: boolean;
  depth: number;
  offset?: number;
  file: string | null;
  snapshot: string | null;
}

/** Joins adjacent data extents. */
function dataOf(entries: { start: number; length: number; data: boolean }[]): [number, number][] {
  const joined: [number, number][] = [];
  for (const { start, length, data } of entries) {
    const last = joined.at(-1);
    if (!data) continue;
    if (last !== undefined && last[0] + last[1] === start) last[1] += length;
    else joined.push([start, length]);
  }
  return joined;
}

test('map --output json shows data where qemu-img map finds it in the raw copy, and its file', async (t) => {
  const { directory, pcow } = await samePair(t);
  const entries = JSON.parse(
    await succeeds(t, pcow('map', 'vm1', '--output', 'json')),
  ) as MapEntry[];
  t.is(
    entries.reduce((end, { start, length }) => (t.is(start, end), end + length), 0),
    SIZE,
  );
  const { stdout } = await run('qemu-img', [
    'map',
    '--output=json',
    '-f',
    'raw',
    path.join(directory, 'vm1.raw'),
  ]);
  t.deepEqual(dataOf(entries), dataOf(JSON.parse(stdout) as MapEntry[]));
  t.deepEqual(
    new Set(entries.map(({ file }) => file && path.basename(file)).sort()),
    new Set(['base.pcow', null, 'vm1.pcow']),
  );
  const raw = await open(path.join(directory, 'vm1.raw'));
  for (const { start, length, offset, file } of entries.filter(({ data }) => data)) {
    const image = await open(file!);
    const [held, expected] = [Buffer.alloc(length), Buffer.alloc(length)];
    await image.read(held, 0, length, offset);
    await raw.read(expected, 0, length, start);
    t.true(held.equals(expected), `at ${start}`);
    await image.close();
  }
  await raw.close();
});

test('map for people, and as a picture', async (t) => {
  const { pcow } = await samePair(t);
  t.regex(
    await succeeds(t, pcow('map', 'vm1')),
    /^ +0x[0-9a-f]+ +0x[0-9a-f]+ {2}data +0x[0-9a-f]+ {2}base\.pcow@installed$/m,
  );
  t.regex(await succeeds(t, pcow('map', 'vm1@monday')), /vm1\.pcow@monday$/m);
  const svg = await succeeds(t, pcow('map', 'vm1', '--output', 'svg'));
  t.regex(svg, /^<svg [^]*<\/svg>\n$/);
  for (const name of ['now', 'monday', 'installed', 'what is read'])
    t.true(svg.includes(`>${name}</text>`), name);
  await fails(t, pcow('map', 'vm1@never'), 4, /never/);
});

test('diff lists what was written since; elsewhere the image is equal', async (t) => {
  const { directory, pcow } = await samePair(t);
  const file = path.join(directory, 'vm1.pcow');
  const image = await Image.open(file, { write: true });
  await image.snapshot('tuesday');
  await image.discard(0, 4 * MiB);
  await image.write(Buffer.alloc(4096, 7), 8192);
  await image.close();
  const list = JSON.parse(await succeeds(t, pcow('diff', 'vm1@tuesday', '--json'))) as {
    offset: number;
    kind: string;
  }[];
  t.deepEqual(
    list.find(({ kind }) => kind === 'data'),
    { offset: 8192, length: 4096, kind: 'data' } as never,
  );
  t.true(list.every(({ offset }) => offset < 4 * MiB));
  t.is(
    await succeeds(t, pcow('diff', 'vm1@tuesday', 'vm1@tuesday')),
    'nothing changed since vm1@tuesday\n',
  );
  t.regex(await succeeds(t, pcow('diff', 'vm1@monday', 'tuesday')), /in \d+ ranges?\n$/);
  await fails(t, pcow('diff', 'vm1'), 2, /does not name a snapshot/);
  await fails(t, pcow('diff', 'vm1@monday', 'base@installed'), 2, /not a snapshot of vm1/);
});

test('compare has the messages and exit codes of qemu-img compare', async (t) => {
  const { directory, pcow } = await samePair(t);
  const raw = path.join(directory, 'vm1.raw');
  await run('qemu-img', [
    'convert',
    '-f',
    'raw',
    '-O',
    'qcow2',
    raw,
    path.join(directory, 'vm1.qcow2'),
  ]);
  await run('cp', ['--sparse=always', raw, path.join(directory, 'other.raw')]);
  const other = await open(path.join(directory, 'other.raw'), 'r+');
  await other.write(Buffer.from([0]), 0, 1, EMPTY + 4096);
  await other.write(Buffer.from([1]), 0, 1, 60 * MiB);
  await other.close();
  await run('cp', ['--sparse=always', raw, path.join(directory, 'longer.raw')]);
  await truncate(path.join(directory, 'longer.raw'), SIZE + MiB);

  const same = { exit: 0, stdout: 'Images are identical.\n', stderr: '' };
  t.deepEqual(await pcow('compare', 'vm1', 'vm1.raw'), same);
  t.deepEqual(await pcow('compare', 'vm1.qcow2', 'vm1'), same);
  t.deepEqual(await pcow('compare', 'vm1', 'longer.raw'), same);
  t.is((await pcow('compare', 'vm1@monday', 'vm1')).exit, 1);
  const words = ['compare', '-f', 'raw', '-F', 'raw'];
  for (const [strict, name] of [
    [[], 'other.raw'],
    [['-s'], 'longer.raw'],
  ] as const) {
    const theirs = await run('qemu-img', [
      ...words,
      ...strict,
      raw,
      path.join(directory, name),
    ]).then(
      () => ({ code: 0, stdout: '' }),
      (error: { code: number; stdout: string }) => error,
    );
    const ours = await pcow('compare', ...strict, 'vm1', name);
    t.is(ours.exit, theirs.code);
    t.is(ours.stdout, theirs.stdout);
  }
  const json = await pcow('compare', '--json', 'vm1', 'other.raw');
  t.deepEqual(
    [json.exit, JSON.parse(json.stdout)],
    [1, { same: false, offset: 60 * MiB, why: 'content' }],
  );
  await fails(t, pcow('compare', 'vm1', 'never'), 4, /never/);
  await fails(t, pcow('compare', 'vm1@never', 'vm1'), 4, /never/);
  await fails(t, pcow('compare', '-F', 'qcow2', 'vm1', 'vm1.raw'), 3, /qemu-img can't work on/);
});

test('measure shows the disk space of an image with that content', async (t) => {
  const { directory, pcow } = await samePair(t);
  const measured = JSON.parse(await succeeds(t, pcow('measure', 'vm1.raw', '--json'))) as Record<
    string,
    number
  >;
  const file = path.join(directory, 'copy.pcow');
  await Image.create(file, { size: SIZE });
  const copy = await Image.open(file, { write: true });
  const raw = await open(path.join(directory, 'vm1.raw'));
  const { stdout } = await run('qemu-img', [
    'map',
    '--output=json',
    '-f',
    'raw',
    path.join(directory, 'vm1.raw'),
  ]);
  for (const [start, length] of dataOf(JSON.parse(stdout) as MapEntry[])) {
    const bytes = Buffer.alloc(length);
    await raw.read(bytes, 0, length, start);
    await copy.write(bytes, start);
  }
  await copy.sync();
  const { diskUse } = copy.info();
  await copy.close();
  await raw.close();
  t.true(
    measured.required! >= diskUse && measured.required! < diskUse * 1.05 + 131072,
    `${measured.required} ${diskUse}`,
  );
  t.deepEqual(JSON.parse(await succeeds(t, pcow('measure', 'vm1', '--json'))), measured as never);
  const empty = JSON.parse(await succeeds(t, pcow('measure', '--size', '1T', '--json'))) as Record<
    string,
    number
  >;
  t.true(empty.required! <= 131072 && empty['fully-allocated']! > 2 ** 40);
  t.regex(await succeeds(t, pcow('measure', 'vm1.raw')), /^required .*\nfully allocated .*\n$/);
  await fails(t, pcow('measure'), 2, /a source or --size/);
});
