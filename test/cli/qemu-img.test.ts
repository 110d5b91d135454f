/**
 * The rows of `docs/qemu-img.md`: qemu-img and pcow do the same to the same data, and the results
 * are compared. `convert` is in `convert.test.ts`; `compare`, `map` and `measure` are in
 * `contents.test.ts`.
 */
import { execFile, spawn } from 'node:child_process';
import { access, copyFile, mkdir, open, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { LOST_DATA } from '../../cli/output/exit-codes.js';
import { Image } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { mounted } from '../helpers/mounted.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { working } from '../stream/images.js';
import { fails, pcowIn, succeeds, type Run } from './outcome.js';

const run = promisify(execFile);
const MiB = 2 ** 20;
const SIZE = 8 * MiB;

interface Pair {
  directory: string;
  pcow: Run;
  /** Runs qemu-img and returns its output. */
  qemu: (...words: string[]) => Promise<string>;
  /** Writes the same random bytes to NAME.pcow and NAME.qcow2, in multiples of `unit` bytes. */
  scribble: (name: string, where?: { from?: number; to?: number; unit?: number }) => Promise<void>;
  /**
   * NAME.pcow, or a snapshot of it, has the same content as NAME.qcow2, or the same snapshot of it.
   */
  same: (name: string, snapshot?: string) => Promise<void>;
}

async function pair(t: ExecutionContext<unknown>): Promise<Pair> {
  const random = new Random(seedFromEnvironment());
  t.log(`PCOW_SEED=${random.seed}`);
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  const qemu = async (...words: string[]) =>
    (await run('qemu-img', words, { cwd: directory })).stdout;
  const scribble: Pair['scribble'] = async (name, { from = 0, to = SIZE, unit = 512 } = {}) => {
    const patches = Array.from({ length: 12 }, () => {
      const bytes = random.fill(Buffer.alloc(unit * (1 + random.below(Math.ceil(51200 / unit)))));
      return { bytes, offset: from + unit * random.below((to - from - bytes.length) / unit) };
    });
    await working(at(`${name}.pcow`), async (image) => {
      for (const { bytes, offset } of patches) await image.write(bytes, offset);
    });
    await writeQcow2(directory, `${name}.qcow2`, patches);
  };
  const same = async (name: string, snapshot?: string) => {
    const image = await Image.open(at(`${name}.pcow`));
    const size = (
      snapshot === undefined ? image.info() : image.snapshots().find((it) => it.name === snapshot)
    )?.size;
    const ours = Buffer.alloc(size ?? 0);
    await image.read(ours, 0, snapshot);
    await image.close();
    const of = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`];
    await qemu('convert', '-f', 'qcow2', ...of, '-O', 'raw', `${name}.qcow2`, 'theirs.raw');
    const theirs = await readFile(at('theirs.raw'));
    t.is(ours.length, theirs.length, name);
    t.true(ours.equals(theirs), `${name} ${snapshot ?? ''}`);
  };
  return { directory, pcow: pcowIn(directory), qemu, scribble, same };
}

/** By qemu-io, from a file of the bytes. */
async function writeQcow2(
  directory: string,
  name: string,
  patches: { bytes: Uint8Array; offset: number }[],
): Promise<void> {
  const commands: string[] = [];
  for (const [number, { bytes, offset }] of patches.entries()) {
    const file = path.join(directory, `patch${number}`);
    await writeFile(file, bytes);
    commands.push('-c', `write -s ${file} ${offset} ${bytes.length}`);
  }
  await run('qemu-io', ['-f', 'qcow2', ...commands, name], { cwd: directory });
}

/** base (written) and vm on it (written over it), of both kinds. */
async function stacked(t: ExecutionContext<unknown>): Promise<Pair> {
  const both = await pair(t);
  const { pcow, qemu, scribble } = both;
  await succeeds(t, pcow('create', 'base', '8M'));
  await qemu('create', '-f', 'qcow2', 'base.qcow2', '8M');
  await scribble('base');
  await succeeds(t, pcow('snapshot', 'base@installed'));
  await succeeds(t, pcow('create', 'vm', '--base', 'base@installed'));
  await qemu('create', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'vm.qcow2');
  await scribble('vm');
  return both;
}

test('create, with and without a base, and info', async (t) => {
  const { pcow, qemu, same, directory } = await stacked(t);
  await same('base');
  await same('vm');
  const facts = async (name: string) => {
    const ours = JSON.parse(await succeeds(t, pcow('info', name, '--json'))) as Record<
      string,
      unknown
    >;
    const theirs = JSON.parse(await qemu('info', '--output=json', `${name}.qcow2`)) as Record<
      string,
      unknown
    >;
    return { ours, theirs };
  };
  for (const name of ['base', 'vm']) {
    const { ours, theirs } = await facts(name);
    t.is(ours.size, theirs['virtual-size']);
    t.is(ours.blockSize, theirs['cluster-size']);
  }
  const { ours, theirs } = await facts('vm');
  t.is(theirs['backing-filename'], 'base.qcow2');
  t.like(ours, { base: { resolved: path.join(directory, 'base.pcow'), snapshot: 'installed' } });
});

test('snapshot: take, list, roll back, delete', async (t) => {
  const { pcow, qemu, scribble, same } = await stacked(t);
  const names = async () => {
    const listed = JSON.parse(await succeeds(t, pcow('list', 'vm', '--json'))) as {
      snapshots: { name: string }[];
    };
    const theirs = [...(await qemu('snapshot', '-l', 'vm.qcow2')).matchAll(/^\d+ +(\S+)/gm)].map(
      ([, name]) => name,
    );
    t.deepEqual(
      listed.snapshots.map(({ name }) => name),
      theirs as string[],
    );
  };
  for (const name of ['monday', 'tuesday', 'friday']) {
    await succeeds(t, pcow('snapshot', `vm@${name}`));
    await qemu('snapshot', '-c', name, 'vm.qcow2');
    await scribble('vm');
  }
  await names();
  for (const name of ['monday', 'tuesday', 'friday']) await same('vm', name);
  await succeeds(t, pcow('rollback', 'vm@tuesday'));
  await qemu('snapshot', '-a', 'tuesday', 'vm.qcow2');
  await same('vm');
  await scribble('vm');
  await succeeds(t, pcow('delete', 'vm@tuesday'));
  await qemu('snapshot', '-d', 'tuesday', 'vm.qcow2');
  await names();
  await same('vm');
  for (const name of ['monday', 'friday']) await same('vm', name);
});

test('resize: larger, by a difference, and smaller only with --shrink', async (t) => {
  const { pcow, qemu, scribble, same } = await stacked(t);
  for (const size of ['12M', '+4M']) {
    await succeeds(t, pcow('resize', 'vm', size));
    await qemu('resize', '-f', 'qcow2', 'vm.qcow2', size);
    await same('vm');
  }
  await scribble('vm', { from: SIZE, to: 16 * MiB });
  await same('vm');
  await fails(t, pcow('resize', 'vm', '10M'), 3, /--shrink/);
  await t.throwsAsync(qemu('resize', '-f', 'qcow2', 'vm.qcow2', '10M'), { message: /--shrink/ });
  await same('vm');
  await succeeds(t, pcow('resize', 'vm', '10M', '--shrink'));
  await qemu('resize', '-f', 'qcow2', '--shrink', 'vm.qcow2', '10M');
  await same('vm');
});

test('rebase: onto another base, onto none, and with --unsafe', async (t) => {
  const { pcow, qemu, scribble, same } = await stacked(t);
  await succeeds(t, pcow('create', 'other', '8M'));
  await qemu('create', '-f', 'qcow2', 'other.qcow2', '8M');
  await scribble('other');
  await succeeds(t, pcow('snapshot', 'other@installed'));
  await same('vm');
  await succeeds(t, pcow('rebase', 'vm', '-b', 'other@installed'));
  await qemu('rebase', '-f', 'qcow2', '-b', 'other.qcow2', '-F', 'qcow2', 'vm.qcow2');
  await same('vm');
  await succeeds(t, pcow('rebase', 'vm', '-b', ''));
  await qemu('rebase', '-f', 'qcow2', '-b', '', 'vm.qcow2');
  await same('vm');

  // qcow2 holds complete clusters even if only a part was written, so complete clusters are
  // compared.
  await succeeds(t, pcow('create', 'unseen', '--base', 'base@installed'));
  await qemu('create', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'unseen.qcow2');
  await scribble('unseen', { unit: 65536 });
  await succeeds(t, pcow('rebase', '-u', 'unseen', '-b', 'other@installed'));
  await qemu('rebase', '-u', '-f', 'qcow2', '-b', 'other.qcow2', '-F', 'qcow2', 'unseen.qcow2');
  await same('unseen');
});

test('commit: the base gets the content of the image', async (t) => {
  const { pcow, qemu, same } = await stacked(t);
  await succeeds(t, pcow('commit', 'vm', '--name', 'patched'));
  await qemu('commit', '-f', 'qcow2', 'vm.qcow2');
  await same('base');
  await same('vm');
});

/** The exit codes of `qemu-img check` and `pcow check` in the same case. */
const CHECK_CODES = { sound: [0, 0], damage: [2, 13], leak: [3, 14] } as const;

test('check: intact, damaged, with a leak, and repaired', async (t) => {
  const { directory, pcow, qemu, scribble, same } = await pair(t);
  const at = (name: string) => path.join(directory, name);
  await succeeds(t, pcow('create', 'vm', '8M'));
  await qemu('create', '-f', 'qcow2', 'vm.qcow2', '8M');
  await scribble('vm', { unit: 65536 });
  const both = async (outcome: keyof typeof CHECK_CODES) => {
    const theirs = await run('qemu-img', ['check', '-f', 'qcow2', at('vm.qcow2')]).then(
      () => 0,
      (error: { code: number }) => error.code,
    );
    t.deepEqual([theirs, (await pcow('check', 'vm')).exit], [...CHECK_CODES[outcome]], outcome);
  };
  await both('sound');
  await damageQcow2(at('vm.qcow2'));
  await damagePcow(at('vm.pcow'));
  await both('damage');
  await qemu('check', '-q', '-r', 'all', '-f', 'qcow2', 'vm.qcow2');
  t.is(
    (await pcow('check', 'vm', '--repair')).exit,
    LOST_DATA,
    'what nobody can tell, or nothing named, is told',
  );
  await both('sound');
  await same('vm');
  await leakQcow2(at('vm.qcow2'));
  await leakPcow(at('vm.pcow'));
  await both('leak');
  await qemu('check', '-q', '-r', 'leaks', '-f', 'qcow2', 'vm.qcow2');
  t.is(
    (await pcow('check', 'vm', '--repair')).exit,
    LOST_DATA,
    'what nobody can tell, or nothing named, is told',
  );
  await both('sound');
  await same('vm');
});

async function patch(file: string, at: number, bytes: Uint8Array): Promise<void> {
  const handle = await open(file, 'r+');
  await handle.write(bytes, 0, bytes.length, at);
  await handle.close();
}

/** The offset of the refcounts of the first clusters: two bytes each. */
async function refcountsOf(file: string): Promise<number> {
  const bytes = await readFile(file);
  return Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
}

/** The last cluster is used, but counted as free. */
async function damageQcow2(file: string): Promise<void> {
  const last = Math.ceil((await stat(file)).size / 65536) - 1;
  await patch(file, (await refcountsOf(file)) + 2 * last, Buffer.from([0, 0]));
}

/** Entries of a closed image that are written but not durable. */
async function damagePcow(file: string): Promise<void> {
  const bytes = await readFile(file);
  const entry = bytes.indexOf(Buffer.from('ffffffff', 'hex'), 2 * 65536);
  if (entry < 0) throw new Error('no entry is complete');
  await patch(file, entry + 2, Buffer.from([0, 0]));
}

/** A cluster behind the last one that is counted as used. */
async function leakQcow2(file: string): Promise<void> {
  const next = Math.ceil((await stat(file)).size / 65536);
  await patch(file, next * 65536, Buffer.alloc(65536, 1));
  await patch(file, (await refcountsOf(file)) + 2 * next, Buffer.from([0, 1]));
}

async function leakPcow(file: string): Promise<void> {
  await patch(file, Math.ceil((await stat(file)).size / 65536) * 65536, Buffer.alloc(65536, 1));
}

test('amend: the size, which is its only option about the content', async (t) => {
  const { pcow, qemu, same } = await stacked(t);
  await succeeds(t, pcow('resize', 'vm', '12M'));
  await qemu('amend', '-f', 'qcow2', '-o', 'size=12M', 'vm.qcow2');
  await same('vm');
});

test('bitmap: what a dirty bitmap counts, diff counts', async (t) => {
  const { directory, pcow, qemu, scribble } = await stacked(t);
  await succeeds(t, pcow('snapshot', 'vm@monday'));
  await qemu('bitmap', '--add', '-g', '65536', 'vm.qcow2', 'monday');
  await scribble('vm', { unit: 65536 });
  const ours = JSON.parse(await succeeds(t, pcow('diff', 'vm@monday', '--json'))) as {
    offset: number;
    length: number;
  }[];
  const socket = path.join(directory, 'nbd');
  const words = [
    '-r',
    '-k',
    socket,
    '-B',
    'monday',
    '-f',
    'qcow2',
    path.join(directory, 'vm.qcow2'),
  ];
  const server = spawn('qemu-nbd', words, { stdio: 'inherit' });
  t.teardown(() => server.kill('SIGKILL'));
  await eventually(() =>
    access(socket).then(
      () => true,
      () => false,
    ),
  );
  const options = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:monday`;
  const theirs = JSON.parse(await qemu('map', '--output=json', '--image-opts', options)) as {
    start: number;
    length: number;
    data: boolean;
  }[];
  t.deepEqual(
    ours.map(({ offset, length }) => [offset, length]),
    theirs.filter(({ data }) => !data).map(({ start, length }) => [start, length]),
  );
});

test('bench: the same program, on the file of a mounted image', async (t) => {
  const { directory, pcow, qemu, same } = await stacked(t);
  const [images = '', mnt = ''] = ['images', 'mnt'].map((name) => path.join(directory, name));
  await mkdir(images);
  await mkdir(mnt);
  for (const name of ['base', 'vm']) {
    await copyFile(path.join(directory, `${name}.pcow`), path.join(images, `${name}.pcow`));
  }
  await mounted(t, images, mnt);
  const words = [
    '-q',
    '-w',
    '-c',
    '60',
    '-d',
    '4',
    '-s',
    '65536',
    '-S',
    '131072',
    '--pattern',
    '65',
  ];
  await qemu('bench', ...words, '-f', 'raw', path.join(mnt, 'vm'));
  await qemu('bench', ...words, '-f', 'qcow2', 'vm.qcow2');
  await succeeds(t, pcow('umount', mnt));
  await copyFile(path.join(images, 'vm.pcow'), path.join(directory, 'vm.pcow'));
  await same('vm');
});

test('dd: on the file of a mounted image, as qemu-img dd does it', async (t) => {
  const { pcow, qemu, directory } = await stacked(t);
  const [images, mnt] = ['images', 'mnt'].map((name) => path.join(directory, name));
  await mkdir(images ?? '');
  await mkdir(mnt ?? '');
  await succeeds(t, pcow('flatten', 'vm'));
  await copyFile(path.join(directory, 'vm.pcow'), path.join(images ?? '', 'vm.pcow'));
  await mounted(t, images ?? '', mnt ?? '');
  const words = ['bs=4096', 'skip=100', 'count=500'];
  await run('dd', [`if=${path.join(mnt ?? '', 'vm')}`, 'of=ours.raw', ...words], {
    cwd: directory,
  });
  await qemu('dd', '-f', 'qcow2', '-O', 'raw', ...words, 'if=vm.qcow2', 'of=theirs.raw');
  // qemu-img counts from the beginning of its input, and dd from the skipped offset.
  const [ours, theirs] = await Promise.all(
    ['ours.raw', 'theirs.raw'].map((name) => readFile(path.join(directory, name))),
  );
  t.is(theirs?.length, 400 * 4096);
  t.true(ours?.subarray(0, theirs?.length).equals(theirs ?? Buffer.alloc(0)));
});
