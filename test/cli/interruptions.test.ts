/**
 * Interrupts every command that changes, makes or reads images, by SIGINT and by SIGKILL at random
 * moments. For commands through a mount, also kills the mount or aborts its connection. Afterwards
 * `check` finds nothing, each image has its old or its new content, the same command again finishes
 * the work, and no hidden file is left.
 *
 * PCOW_INTERRUPTIONS: how often each command is struck; without it, some are, each once; at length
 * all (npm run test:long).
 */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { LOST_DATA } from '../../cli/output/exit-codes.js';
import { AT_LENGTH } from '../helpers/effort.js';
import { eventually } from '../helpers/eventually.js';
import { connectionOf, mounted } from '../helpers/mounted.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';
import {
  copyFamily,
  type Ended,
  faultsIn,
  hidden,
  type Interruptible,
  isMixture,
  isSameState,
  makeFamily,
  pcow,
  recover,
  start,
  type State,
  stateOf,
} from './interruptions.js';

const run = promisify(execFile);
const ROUNDS = process.env.PCOW_INTERRUPTIONS ?? (AT_LENGTH ? '1' : undefined);
/** How many are interrupted by default. */
const FEW_AT_REST = 8;
const FEW_MOUNTED = 2;
/** Commands at once. */
const AT_ONCE = 2;

const AT_REST: Interruptible[] = [
  { words: ['create', 'new', '1G'] },
  { words: ['create', 'new', '--base', 'base'] },
  { words: ['clone', 'vm', 'new'] },
  { words: ['snapshot', 'vm@new', 'base@new'] },
  { words: ['rollback', 'vm@s1'] },
  { words: ['delete', 'vm@s1'] },
  { words: ['delete', 'vm@s2'] },
  { words: ['resize', 'vm', '1T'] },
  { words: ['resize', 'plain', '6M', '--shrink'] },
  { words: ['compact', 'vm'] },
  { words: ['rebase', 'vm', '--base', 'base@two'] },
  { words: ['rebase', 'vm', '--unsafe', '--base', 'base@two'] },
  { words: ['flatten', 'vm'] },
  { words: ['commit', 'child', '--name', 'committed'] },
  { words: ['rename', 'base', 'ground'] },
  { words: ['rename', 'vm@s1', 'renamed'] },
  { words: ['rm', 'child', 'vm'] },
  { words: ['check', 'damaged', '--repair'], repairs: true },
  { words: ['convert', 'disk.raw', 'new'] },
  { words: ['convert', 'disk.qcow2', 'new'] },
  { words: ['convert', '-f', 'original', 'old.img', 'new'] },
  { words: ['convert', 'disk.raw', 'new', '-B', 'base'] },
  { words: ['convert', 'disk.raw', 'plain', '--force'] },
  { words: ['convert', 'vm', 'new.raw'] },
  { words: ['convert', 'vm@s2', 'new.qcow2', '-c'] },
  { words: ['export', 'vm', 'new.export'] },
  { words: ['import', 'vm.export', 'new'] },
  { words: ['receive', 'new'], input: 'first.stream', receives: true },
  { words: ['receive', 'copy'], input: 'second.stream', receives: true },
  { words: ['send', 'lone@s2', '--from', 's1'], reads: true },
  { words: ['compare', 'vm', 'disk.qcow2'], reads: true },
  { words: ['measure', 'vm'], reads: true },
  { words: ['map', 'vm', '--output', 'svg'], reads: true },
  { words: ['diff', 'vm@s1', 's2'], reads: true },
  { words: ['info', 'vm'], reads: true },
  { words: ['list', 'vm'], reads: true },
  { words: ['check', 'damaged'], reads: true },
];

function someOf<T>(list: readonly T[], count: number, random: Random): T[] {
  const left = [...list];
  return Array.from({ length: count }, () => left.splice(random.below(left.length), 1)).flat();
}

interface Place {
  random: Random;
  /** The files that a command needs, in a directory of its own. */
  copy: (command: Interruptible) => Promise<string>;
}

async function place(t: ExecutionContext): Promise<Place> {
  const random = new Random(seedFromEnvironment());
  t.log(`PCOW_SEED=${random.seed}`);
  const scratch = await scratchDirectory(t);
  const family = path.join(scratch, 'family');
  await mkdir(family);
  await makeFamily(family, random);
  let copies = 0;
  return {
    random,
    copy: async (command) => {
      const directory = path.join(scratch, String(copies++));
      await copyFamily(family, directory, command);
      return directory;
    },
  };
}

/** An undisturbed run of a command: its results, and the time that it takes. */
interface Reference {
  before: State;
  after: State;
  milliseconds: number;
}

async function referenceOf(
  t: ExecutionContext,
  command: Interruptible,
  directory: string,
): Promise<Reference> {
  const before = await stateOf(directory, command.reads ?? false);
  const begun = performance.now();
  const { code, stderr } = await pcow(directory, command);
  const milliseconds = performance.now() - begun;
  // The damaged image has data to which nothing refers; a repair reports this by its exit code.
  t.true(
    code === (command.repairs ? LOST_DATA : 0) || command.reads,
    `${command.words.join(' ')}: ${stderr}`,
  );
  const after = await stateOf(directory, command.reads ?? false);
  if (command.reads) t.deepEqual(after, before);
  return { before, after, milliseconds };
}

/** A time after the start of the program, at the latest a little after its end. */
function moment(random: Random, startup: number, { milliseconds }: Reference): number {
  const first = startup * 0.7;
  return first + random.next() * Math.max(20, 1.1 * milliseconds - first);
}

/** The possible results of SIGINT: interrupted properly, finished before, or not begun yet. */
function endsOf(signal: NodeJS.Signals, { code, signal: by }: Ended): boolean {
  return by === signal || (signal === 'SIGINT' && code === 130) || code !== null;
}

async function soundAfter(
  t: ExecutionContext,
  directory: string,
  command: Interruptible,
  { before, after }: Reference,
  what: string,
): Promise<boolean> {
  const { reads = false, receives = false, repairs = false } = command;
  const look = async (closed: boolean) => {
    if (!repairs && !reads)
      t.deepEqual((await faultsIn(directory, closed)).filter(undamaged), [], what);
    const found = await stateOf(directory, reads);
    t.is(isMixture(found, before, after, command), null, what);
    return isSameState(found, after);
  };
  const done = await look(false);
  if (reads || receives || repairs) return done;
  await recover(directory);
  await look(true);
  return done;
}

/** One of the images is damaged from the beginning. */
function undamaged(fault: string): boolean {
  return !fault.startsWith('damaged.pcow');
}

async function strikeAtRest(
  t: ExecutionContext,
  { random, copy }: Place,
  startup: number,
): Promise<void> {
  const counts = { struck: 0, killed: 0 };
  const left = (ROUNDS === undefined ? someOf(AT_REST, FEW_AT_REST, random) : AT_REST).values();
  const strike = async (command: Interruptible, reference: Reference) => {
    const directory = await copy(command);
    const signal = random.pick(['SIGINT', 'SIGKILL'] as const);
    const after = moment(random, startup, reference);
    const { child, ended } = await start(directory, command);
    const timer = setTimeout(() => child.kill(signal), after);
    const end = await ended;
    clearTimeout(timer);
    const what = `${command.words.join(' ')}: ${signal} after ${Math.round(after)} ms; ${end.stderr}`;
    counts.struck += 1;
    if (end.code !== 0) counts.killed += 1;
    t.true(endsOf(signal, end), what);
    const done = await soundAfter(t, directory, command, reference, what);
    if (!command.reads) {
      const again = await pcow(
        directory,
        againOf(command, reference, await stateOf(directory, false)),
      );
      t.true(isDone(again) || done, `${what}; again: ${again.stderr}`);
      t.true(isSameState(await stateOf(directory, false), reference.after), `${what}; again`);
      t.deepEqual((await faultsIn(directory, true)).filter(undamaged), [], `${what}; again`);
    }
    t.deepEqual(
      (await hidden(directory)).filter(() => !done),
      [],
      what,
    );
    await run('rm', ['-rf', directory]);
  };
  const worker = async () => {
    for (const command of left) {
      const reference = await referenceOf(t, command, await copy(command));
      for (let round = 0; round < Number(ROUNDS ?? 1); round += 1) await strike(command, reference);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  t.log(`${counts.struck} struck, ${counts.killed} of them before their end`);
}

/** The arguments that finish the command: an image that is already deleted is not named again. */
function againOf(command: Interruptible, { before }: Reference, found: State): Interruptible {
  if (command.words[0] !== 'rm') return command;
  const gone = (word: string) => `${word}.pcow` in before && !(`${word}.pcow` in found);
  return { words: command.words.filter((word) => !gone(word)) };
}

async function startupOf(directory: string): Promise<number> {
  const begun = performance.now();
  await pcow(directory, { words: ['--version'] });
  return performance.now() - begun;
}

/** Milliseconds for each round of each command. */
const PATIENCE = 60_000;

test.serial('at rest', async (t) => {
  t.timeout(AT_REST.length * PATIENCE * Number(ROUNDS ?? 1));
  const given = await place(t);
  await strikeAtRest(t, given, await startupOf(await scratchDirectory(t)));
});

const BY_THE_MOUNT = [
  'clone',
  'snapshot',
  'rollback',
  'delete',
  'resize',
  'compact',
  'rebase',
  'flatten',
  'commit',
  'rename',
  'rm',
];
const WAYS = ['SIGINT', 'SIGKILL', 'the mount is killed', 'the mount is aborted'] as const;

async function strikeMounted(
  t: ExecutionContext,
  { random, copy }: Place,
  startup: number,
  command: Interruptible,
): Promise<boolean> {
  const before = await copy(command);
  const reference = await referenceOf(t, command, before);
  const directory = await copy(command);
  const point = `${directory}-mnt`;
  await mkdir(point);
  const daemon = await mounted(t, directory, point);
  const gone = once(daemon, 'close');
  const way = random.pick(WAYS);
  const after = moment(random, startup, reference);
  const { child, ended } = await start(directory, command);
  const connection = await connectionOf(point);
  let struck = false;
  const timer = setTimeout(() => {
    struck = true;
    if (way === 'the mount is killed') daemon.kill('SIGKILL');
    else if (way === 'the mount is aborted')
      writeFileSync(`/sys/fs/fuse/connections/${connection ?? ''}/abort`, '1');
    else child.kill(way);
  }, after);
  const end = await ended;
  clearTimeout(timer);
  const what = `mounted: ${command.words.join(' ')}: ${way} after ${Math.round(after)} ms; ${end.stderr}`;
  // The mount finishes what it has begun, even if the requesting process is gone.
  if (way === 'SIGINT' || way === 'SIGKILL')
    await eventually(async () => isDone(await pcow(directory, umount(point))));
  else if (!struck) daemon.kill('SIGKILL');
  await gone;
  // nothing is mounted any more
  await run('fusermount3', ['-u', '-z', point]).catch(() => undefined);
  const done = await soundAfter(t, directory, command, reference, what);

  await mounted(t, directory, point);
  const again = await pcow(directory, againOf(command, reference, await stateOf(directory, false)));
  t.true(isDone(again) || done, `${what}; again: ${again.stderr}`);
  t.true(isDone(await pcow(directory, umount(point))), what);
  t.is(
    isMixture(await stateOf(directory, false), reference.after, reference.after, command),
    null,
    `${what}; again`,
  );
  t.deepEqual(await faultsIn(directory, true), [], `${what}; again`);
  t.deepEqual(await hidden(directory), [], what);
  await run('rm', ['-rf', directory, before]);
  return end.code !== 0;
}

function isDone({ code }: Ended): boolean {
  return code === 0 || code === LOST_DATA;
}

function umount(point: string): Interruptible {
  return { words: ['umount', point] };
}

test.serial('through a mount', async (t) => {
  const given = await place(t);
  const commands = AT_REST.filter(
    ({ words: [name = '', ...rest] }) => BY_THE_MOUNT.includes(name) && !rest.includes('--unsafe'),
  );
  const struck =
    ROUNDS === undefined
      ? someOf(commands, FEW_MOUNTED, given.random)
      : Array.from({ length: Number(ROUNDS) }, () => commands).flat();
  t.timeout(struck.length * PATIENCE);
  const startup = await startupOf(await scratchDirectory(t));
  let killed = 0;
  for (const command of struck) {
    if (await strikeMounted(t, given, startup, command)) killed += 1;
  }
  t.log(`${struck.length} struck, ${killed} of them before their end`);
});
