/** `--json` is for programs: its fields always have these names and types. */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { pcowProgram } from '../../cli/pcow-program.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { pcowIn, succeeds, type Run } from './outcome.js';

/**
 * The structure of a value: its fields with the names of their types; for an array, the structures
 * of its elements.
 */
function shapeOf(value: unknown): unknown {
  if (value === null) return 'null';
  if (Array.isArray(value))
    return [...new Map(value.map(shapeOf).map((it) => [JSON.stringify(it), it])).values()];
  if (typeof value !== 'object') return typeof value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, shapeOf(member)]));
}

async function imagesIn(directory: string, pcow: Run): Promise<void> {
  for (const words of [
    ['create', 'base', '1M'],
    ['snapshot', 'base@one'],
    ['create', 'vm1', '--base', 'base@one'],
  ]) {
    await pcow(...words);
  }
  await writeFile(path.join(directory, 'text.pcow'), 'not an image');
}

test('info', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await imagesIn(directory, pcow);
  const info = JSON.parse(await succeeds(t, pcow('info', 'vm1', '--json'))) as Record<
    string,
    unknown
  >;
  t.deepEqual(shapeOf(info), {
    name: 'string',
    path: 'string',
    uuid: 'string',
    formatVersion: 'number',
    size: 'number',
    blockSize: 'number',
    subBlockSize: 'number',
    fileSize: 'number',
    diskUse: 'number',
    lazy: 'boolean',
    remoteBytes: 'number',
    standsOnLazy: 'boolean',
    reference: 'null',
    limit: 'null',
    clean: 'boolean',
    generation: 'number',
    snapshots: 'number',
    base: {
      path: 'string',
      resolved: 'string',
      uuid: 'string',
      layer: 'number',
      snapshot: 'string',
    },
    chain: [
      { path: 'string', snapshot: 'null', layer: 'number' },
      { path: 'string', snapshot: 'string', layer: 'number' },
    ],
    state: 'string',
    holder: 'null',
    receiving: 'null',
    mount: 'null',
  });
  t.is(info.path, path.join(directory, 'vm1.pcow'));
  t.is(info.size, 2 ** 20);
  t.is(info.state, 'closed');
});

test('list of a directory', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await imagesIn(directory, pcow);
  const list = JSON.parse(await succeeds(t, pcow('list', '.', '--json'))) as {
    images: Record<string, unknown>[];
  };
  const sound = {
    name: 'string',
    file: 'string',
    size: 'number',
    diskUse: 'number',
    remote: 'null',
    snapshots: 'number',
    base: 'null' as unknown,
    state: 'string',
    holder: 'null',
    receiving: 'null',
    error: 'null' as unknown,
  };
  t.deepEqual(shapeOf(list), {
    directory: 'string',
    mountpoint: 'null',
    images: [
      sound,
      {
        ...sound,
        ...{ size: 'null', diskUse: 'null', snapshots: 'null' },
        error: { code: 'string', message: 'string' },
      },
      { ...sound, base: { path: 'string', snapshot: 'string' } },
    ],
  });
  t.deepEqual(
    list.images.map(({ name, state }) => [name, state]),
    [
      ['base', 'closed'],
      ['text', 'unreadable'],
      ['vm1', 'closed'],
    ],
  );
});

test('list of an image', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await imagesIn(directory, pcow);
  await succeeds(t, pcow('snapshot', 'base@two'));
  const list = JSON.parse(await succeeds(t, pcow('list', 'base', '--json'))) as {
    snapshots: { created: string }[];
  };
  const snapshot = {
    name: 'string',
    id: 'number',
    identity: 'string',
    parent: 'null',
    created: 'string',
    size: 'number',
    children: 'number',
    automatic: 'boolean',
    current: 'boolean',
    data: 'number',
  };
  t.deepEqual(shapeOf(list), {
    name: 'string',
    file: 'string',
    size: 'number',
    receiving: 'null',
    snapshots: [snapshot, { ...snapshot, parent: 'string' }],
  });
  for (const { created } of list.snapshots)
    t.regex(created, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
});

test('commands that make and change images', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const json = async (...words: string[]) =>
    JSON.parse(await succeeds(t, pcow(...words, '--json'))) as unknown;
  const image = path.join(directory, 'vm1.pcow');
  const clone = path.join(directory, 'vm2.pcow');
  t.deepEqual(await json('create', 'vm1', '1M'), {
    image,
    size: 2 ** 20,
    blockSize: 65536,
    base: null,
  });
  t.deepEqual(await json('snapshot', 'vm1@one'), { snapshots: [{ image, snapshot: 'one' }] });
  t.deepEqual(shapeOf(await json('clone', 'vm1@one', 'vm2')), {
    image: 'string',
    size: 'number',
    blockSize: 'number',
    base: {
      path: 'string',
      resolved: 'string',
      uuid: 'string',
      layer: 'number',
      snapshot: 'string',
    },
  });
  t.deepEqual(await json('rollback', 'vm1@one'), { image, snapshot: 'one' });
  t.deepEqual(await json('snapshot', 'vm1@two', 'vm2@two'), {
    snapshots: [
      { image, snapshot: 'two' },
      { image: clone, snapshot: 'two' },
    ],
  });
  const deleted = [
    { image, snapshot: 'two' },
    { image: clone, snapshot: 'two' },
  ];
  t.deepEqual(await json('delete', 'vm1@two', 'vm2@two', '--dry-run'), { deleted, dryRun: true });
  t.deepEqual(await json('delete', 'vm1@two', 'vm2@two'), { deleted, dryRun: false });
  t.deepEqual(await json('delete', 'vm1@none*', '--keep', '1'), { deleted: [], dryRun: false });
});

test('mounts', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const mountpoint = path.join(directory, 'mnt');
  for (const made of ['images', 'mnt']) await mkdir(path.join(directory, made));
  t.teardown(() => pcow('umount', 'mnt'));
  const mount = JSON.parse(await succeeds(t, pcow('mount', 'images', 'mnt', '--json'))) as unknown;
  t.deepEqual(mount, { directory: path.join(directory, 'images'), mountpoint });
  for (const [words, dryRun] of [
    [['--dry-run'], true],
    [[], false],
  ] as const) {
    t.deepEqual(JSON.parse(await succeeds(t, pcow('umount', 'images', '--json', ...words))), {
      mountpoint,
      dryRun,
    });
  }
});

test('every command has --json, except those whose output is not a report', async (t) => {
  const { commands } = await pcowProgram();
  t.true(commands.length > 30);
  const without = commands.filter(({ options }) => !options.some(({ long }) => long === '--json'));
  t.deepEqual(
    without.map((command) => command.name()),
    ['map', 'login', 'logout', 'libvirt-xml', 'run', 'completion', 'exit-codes'],
  );
});

test('nothing but JSON goes to stdout, and a failure leaves it empty', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  const { exit, stdout, stderr } = await pcow('info', 'none', '--json');
  t.is(exit, 4);
  t.is(stdout, '');
  t.regex(stderr, /there is no image/);
});
