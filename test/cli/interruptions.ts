/**
 * Commands that are killed at random moments, on images of every kind, and the checks afterwards.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, open, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import { checkImage, Image } from '../../src/engine/index.js';
import { exportStream } from '../../src/stream/archive.js';
import { makeOriginal } from '../helpers/original.js';
import { pcowProgram } from '../helpers/mounted.js';
import type { Random } from '../helpers/random.js';
import { MiB, reading, scribble, streamOf, working } from '../stream/images.js';

const run = promisify(execFile);
const SIZE = 8 * MiB;
const BLOCK = 65536;

/** A command, and how to tell whether it has finished. */
export interface Interruptible {
  words: string[];
  /** A file that the command reads from standard input. */
  input?: string;
  /** Changes nothing, not even a byte of an image file. */
  reads?: true;
  /** The image's content beyond its snapshots may be a part of the new content. */
  receives?: true;
  /** The images need not be intact before it. */
  repairs?: true;
}

/**
 * base (snapshots one, two, and more), vm on base@one (snapshots s1, s2, and more, and zeros),
 * child on base@two and copy, which equals vm at s1; damaged, whose entries are not durable; and
 * files in other formats.
 */
export async function makeFamily(directory: string, random: Random): Promise<void> {
  const at = (name: string) => path.join(directory, name);
  await Image.create(at('base.pcow'), { size: SIZE });
  await working(at('base.pcow'), async (image) => {
    for (const name of ['one', 'two', null]) {
      await scribble(image, random, 25);
      if (name !== null) await image.snapshot(name);
    }
  });
  await Image.create(at('vm.pcow'), { base: { path: at('base.pcow'), snapshot: 'one' } });
  await working(at('vm.pcow'), async (image) => {
    for (const name of ['s1', 's2', null]) {
      await scribble(image, random, 25);
      await image.write(Buffer.alloc(MiB), MiB * random.below(SIZE / MiB - 1));
      if (name !== null) await image.snapshot(name);
    }
  });
  await Image.create(at('child.pcow'), { base: { path: at('base.pcow'), snapshot: 'two' } });
  await working(at('child.pcow'), (image) => scribble(image, random, 25));
  await Image.create(at('lone.pcow'), { size: SIZE });
  await working(at('lone.pcow'), async (image) => {
    await scribble(image, random, 25);
    await image.snapshot('s1');
    await writeFile(at('first.stream'), await streamOf(at('lone.pcow'), 's1', null));
    await scribble(image, random, 60);
    await image.snapshot('s2');
  });
  await writeFile(at('second.stream'), await streamOf(at('lone.pcow'), 's2', 's1'));
  await pcow(directory, { words: ['receive', 'copy'], input: 'first.stream' });
  await makeDamaged(at('damaged.pcow'), random);
  await Image.create(at('plain.pcow'), { size: SIZE });
  await working(at('plain.pcow'), (image) => scribble(image, random, 25));
  await writeFile(
    at('vm.export'),
    await reading(at('vm.pcow'), async (image) => {
      const pieces: Buffer[] = [];
      for await (const piece of exportStream(image)) pieces.push(piece);
      return Buffer.concat(pieces);
    }),
  );
  await pcow(directory, { words: ['convert', 'vm', 'disk.raw'] });
  await pcow(directory, { words: ['convert', 'vm', 'disk.qcow2'] });
  const bytes = random.fill(Buffer.alloc(BLOCK)) as Buffer;
  const segment = () =>
    Array.from({ length: 30 }, (_, number) => ({ block: number * 4 + random.below(4), bytes }));
  await makeOriginal(at('old.img'), {
    blocks: SIZE / BLOCK,
    segments: [segment(), segment(), segment()],
  });
}

async function makeDamaged(file: string, random: Random): Promise<void> {
  await Image.create(file, { size: SIZE });
  await working(file, async (image) => {
    await image.write(random.fill(Buffer.alloc(SIZE)), 0);
  });
  const handle = await open(file, 'r+');
  const table = Buffer.alloc((SIZE / BLOCK) * 8);
  // The superblocks, the layer directory, the table: at least one block each.
  await handle.read(table, 0, table.length, 2 * BLOCK);
  for (let entry = 0; entry < SIZE / BLOCK; entry += 1) table.writeUInt16LE(0, entry * 8 + 2);
  await handle.write(table, 0, table.length, 2 * BLOCK);
  await handle.write(
    Buffer.alloc(BLOCK, 1),
    0,
    BLOCK,
    Math.ceil((await handle.stat()).size / BLOCK) * BLOCK,
  );
  await handle.close();
}

/**
 * Images that belong together: bases with the images that stand on them, and the source and target
 * of a stream.
 */
const GROUPS = [['base', 'vm', 'child'], ['lone', 'copy'], ['damaged'], ['plain']];

/**
 * Copies the images that a command names, with the images that belong to them. The other files are
 * only read, so they are links.
 */
export async function copyFamily(
  family: string,
  directory: string,
  { words, input }: Interruptible,
): Promise<void> {
  await mkdir(directory);
  const named = (name: string) => words.some((word) => word.split('@')[0] === name);
  const images = GROUPS.filter((group) => group.some(named)).flat();
  for (const name of images) {
    await run('cp', ['--sparse=always', path.join(family, `${name}.pcow`), directory]);
  }
  for (const name of [...words, input ?? '']) {
    const file = path.join(family, name);
    if (name.includes('.') && name !== '.' && (await isFile(file)))
      await symlink(file, path.join(directory, name));
  }
}

async function isFile(file: string): Promise<boolean> {
  return stat(file).then(
    (status) => status.isFile(),
    () => false,
  );
}

/** Runs a command to its end. */
export async function pcow(directory: string, command: Interruptible): Promise<Ended> {
  return (await start(directory, command)).ended;
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stderr: string;
}

export async function start(
  cwd: string,
  { words, input }: Interruptible,
): Promise<{ child: ChildProcess; ended: Promise<Ended> }> {
  const stdin = input === undefined ? null : await open(path.join(cwd, input));
  const child = spawn(process.execPath, [pcowProgram, ...words], {
    cwd,
    stdio: [stdin?.fd ?? 'ignore', 'ignore', 'pipe'],
  });
  const pieces: Buffer[] = [];
  child.stderr?.on('data', (piece: Buffer) => pieces.push(piece));
  const ended = once(child, 'close').then(([code, signal]: unknown[]) => ({
    code: code as number | null,
    signal: signal as NodeJS.Signals | null,
    stderr: Buffer.concat(pieces).toString(),
  }));
  await stdin?.close();
  return { child, ended };
}

/**
 * The contents of a directory, by file name: for images everything that can be read from them, for
 * other files their bytes. Hidden files are left out.
 */
export type State = Record<string, string>;

export async function stateOf(directory: string, bytes: boolean): Promise<State> {
  const state: State = {};
  for (const name of await visible(directory)) {
    const file = path.join(directory, name);
    if (name.endsWith('.pcow') && !bytes) state[name] = await contentOf(file);
    else if (name.endsWith('.qcow2')) state[name] = await qcow2Of(file);
    else state[name] = hash(await readFile(file));
  }
  return state;
}

async function visible(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && !entry.name.startsWith('.'))
    .map(({ name }) => name);
}

export async function hidden(directory: string): Promise<string[]> {
  return (await readdir(directory)).filter((name) => name.startsWith('.'));
}

/** Its times and uuids are different each time. */
async function qcow2Of(file: string): Promise<string> {
  await run('qemu-img', ['check', '-q', '-f', 'qcow2', file]);
  return `qcow2 of ${JSON.stringify((JSON.parse((await run('qemu-img', ['info', '--output=json', file])).stdout) as { 'virtual-size': number })['virtual-size'])}`;
}

/**
 * The size, the base, and checksums of its present content and of its snapshots. The names of
 * automatic snapshots contain their time.
 */
async function contentOf(file: string): Promise<string> {
  return reading(file, async (image) => {
    const { size, base } = image.info();
    const named = (name: string) => (name.startsWith('auto-') ? 'automatic' : name);
    const sums = [['now', size, await sumOf(image, null)]];
    for (const { name, size: then } of image.snapshots({ countData: false })) {
      sums.push([named(name), then, await sumOf(image, name)]);
    }
    return JSON.stringify([base && [path.basename(base.path), named(base.snapshot ?? '')], sums]);
  });
}

const ZEROS = Buffer.alloc(4096);

/** The same for zeros of every kind. */
async function sumOf(image: Image, snapshot: string | null): Promise<string> {
  const sum = createHash('sha1');
  const which = snapshot ?? undefined;
  for await (const { kind, offset, length } of image.map({ snapshot: which })) {
    if (kind !== 'data') continue;
    const bytes = Buffer.alloc(length);
    await image.read(bytes, offset, which);
    for (let at = 0; at < length; at += ZEROS.length) {
      const page = bytes.subarray(at, at + ZEROS.length);
      if (!page.equals(ZEROS)) sum.update(`${offset + at}:`).update(page);
    }
  }
  return sum.digest('hex');
}

function hash(bytes: Buffer): string {
  return createHash('sha1').update(bytes).digest('hex');
}

/**
 * What is wrong with the images of a directory. `closed`: all of them were closed, so there may be
 * no data in free space.
 */
export async function faultsIn(directory: string, closed: boolean): Promise<string[]> {
  const faults: string[] = [];
  for (const name of (await visible(directory)).filter((it) => it.endsWith('.pcow'))) {
    const { damages, leaks, clean, findings } = await checkImage(path.join(directory, name));
    if (damages > 0 || (closed && (leaks > 0 || !clean))) {
      faults.push(`${name}: clean ${clean}, ${findings.map(({ message }) => message).join('; ')}`);
    }
  }
  return faults;
}

/** Opens all images for writing, as the next command would, and closes them. */
export async function recover(directory: string): Promise<void> {
  for (const name of (await visible(directory)).filter((it) => it.endsWith('.pcow'))) {
    await working(path.join(directory, name), () => Promise.resolve());
  }
}

/** Every file equals its state before or after the command. */
export function isMixture(
  found: State,
  before: State,
  after: State,
  { receives }: Interruptible,
): string | null {
  for (const name of new Set([before, after, found].flatMap((state) => Object.keys(state)))) {
    if (found[name] === before[name] || found[name] === after[name]) continue;
    if (receives && withoutActive(found[name]) === withoutActive(before[name])) continue;
    return `${name} is ${found[name] ?? 'not there'}; before ${before[name] ?? 'not there'}; after ${after[name] ?? 'not there'}`;
  }
  return null;
}

/** Without its present content; null if that was not made yet. */
function withoutActive(content: string | undefined): string | null {
  if (content === undefined) return null;
  const [base, sums] = JSON.parse(content) as [unknown, unknown[]];
  return base === null && sums.length === 1 ? null : JSON.stringify([base, sums.slice(1)]);
}

export function isSameState(one: State, other: State): boolean {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => one[name] === other[name]);
}
