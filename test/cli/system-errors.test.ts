/**
 * Errors of the system (a full disk, no permission, no descriptors, a removed directory, lost
 * output) cause a sentence and an exit code in each command, never a stack trace.
 */
import { execFile } from 'node:child_process';
import { chmod, mkdir, symlink } from 'node:fs/promises';
import path from 'node:path';
import { getSystemErrorMap, promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { explained } from '../../cli/output/errors.js';
import { exitCodeOf } from '../../cli/output/exit-codes.js';
import { pcowProgram } from '../../cli/pcow-program.js';
import { MiB } from '../helpers/mount.js';
import { pcowProgram as program } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fillDisk, mountSmallDisk } from '../helpers/small-disk.js';
import { everyCommand, type Line, makeImages } from './every-command.js';
import { type Outcome, shellIn } from './outcome.js';

const run = promisify(execFile);

const NOBODY = 'setpriv --reuid=65534 --regid=65534 --clear-groups';

type Shell = (line: string) => Promise<Outcome>;

/** The messages of a command that fails. */
function isSentence(t: ExecutionContext<unknown>, typed: string, { stderr }: Outcome): void {
  t.notRegex(stderr, /unexpected failure|\n +at |node:/, typed);
  t.regex(stderr, /^pcow: \S/, typed);
}

async function failsWith(
  t: ExecutionContext<unknown>,
  shell: Shell,
  typed: string,
  exit: number,
  ...says: RegExp[]
) {
  const found = await shell(typed);
  t.is(found.exit, exit, `${typed}: ${found.stderr}`);
  isSentence(t, typed, found);
  for (const words of says) t.regex(found.stderr, words, typed);
}

function typedOf({ words, input }: Line): string {
  return `pcow ${words.join(' ')}${input === undefined ? '' : ` < ${input}`}`;
}

async function prepared(t: ExecutionContext<unknown>, directory: string): Promise<Shell> {
  await makeImages(directory);
  return shellIn(t, directory);
}

test('each command is in the list', async (t) => {
  const names = (await pcowProgram()).commands.map((command) => command.name());
  const lines = new Set(everyCommand('images').map(({ words: [name] }) => name ?? ''));
  t.deepEqual(names.sort(), [...lines].sort());
});

test('each system error has a sentence, a next step and an exit code', (t) => {
  for (const [errno, [name]] of getSystemErrorMap()) {
    for (const syscall of ['open', 'write', 'mkdir', 'rename', 'unlink', 'spawn x', 'read']) {
      const error = Object.assign(new Error(`${name}: as Node says it`), {
        errno,
        code: name,
        syscall,
        path: '/x/y',
      });
      const { code, message } = explained(error);
      t.not(code, null, name);
      t.regex(message, /^"\/x\/y" can't be \w+: \S/);
    }
  }
  t.is(exitCodeOf(explained(Object.assign(new Error(), { errno: -28, syscall: 'write' })).code), 8);
  t.regex(explained(new TypeError('x is not a function')).hint ?? '', /DEBUG/);
});

test.serial('a full disk', async (t) => {
  const disk = path.join(await scratchDirectory(t), 'disk');
  await mountSmallDisk(t, disk, 32 * MiB);
  const shell = await prepared(t, disk);
  await fillDisk(disk, 0);
  for (const line of everyCommand('images')) {
    if (line.doing !== 'makes' && line.doing !== 'changes') continue;
    const typed = typedOf(line);
    const found = await shell(typed);
    if (found.exit !== 0) isSentenceOf(t, line, found);
    if (line.words[0] === 'doctor') t.is(found.exit, 12);
    else if (line.doing === 'makes') t.is(found.exit, 8, `${typed}: ${found.stderr}`);
    else t.true(found.exit === 0 || found.exit === 8, `${typed}: ${found.exit} ${found.stderr}`);
    t.notRegex(found.stderr, /draft/);
  }
});

/** The doctor itself has not failed: it prints its findings on standard output. */
function isSentenceOf(t: ExecutionContext<unknown>, line: Line, found: Outcome): void {
  if (line.words[0] !== 'doctor') isSentence(t, typedOf(line), found);
  else t.is(found.stderr, '');
}

test.serial('output that is lost, completely or in part', async (t) => {
  const scratch = await scratchDirectory(t);
  const disk = path.join(scratch, 'disk');
  const shell = await prepared(t, scratch);
  const printing = everyCommand('images').filter(
    ({ doing }) => doing === 'reads' || doing === 'nothing',
  );
  const silent = [
    'umount',
    'mount',
    'top',
    'qemu-args',
    'libvirt-xml',
    'scrub',
    'completion',
    'login',
    'logout',
    'trace',
  ];
  for (const { words } of printing.filter(({ words: [name = ''] }) => !silent.includes(name))) {
    await failsWith(
      t,
      shell,
      `pcow ${words.join(' ')} > /dev/full`,
      8,
      /standard output can't be written: its disk is full/,
    );
  }
  await failsWith(t, shell, 'pcow --help > /dev/full', 8, /standard output/);
  // The exit code is the only way to report it.
  t.deepEqual(await shell('pcow info images/none 2> /dev/full'), {
    exit: 4,
    stdout: '',
    stderr: '',
  });
  await mountSmallDisk(t, disk, MiB);
  await fillDisk(disk, 4096);
  await failsWith(t, shell, 'pcow send images/vm@s1 > disk/stream', 8, /standard output/);
});

test.serial('a reader that ends early is no failure, and ends a list', async (t) => {
  const scratch = await scratchDirectory(t);
  await prepared(t, scratch);
  for (const words of [
    'list images',
    'map images/vm',
    'info images/vm',
    'check images/vm',
    '--help',
    'exit-codes',
  ]) {
    const { exit, stderr } = await (
      await shellIn(t, scratch)
    )(`bash -c 'pcow ${words} | true; exit \${PIPESTATUS[0]}'`);
    t.deepEqual({ words, exit, stderr }, { words, exit: 0, stderr: '' });
  }
});

test.serial('no permission for the directory', async (t) => {
  const scratch = await scratchDirectory(t);
  const shell = await prepared(t, scratch);
  await chmod(scratch, 0o711);
  await chmod(path.join(scratch, 'images'), 0o700);
  for (const line of everyCommand('images').filter(({ doing }) => doing !== 'nothing')) {
    const typed = typedOf(line).replace(/^pcow/, `${NOBODY} node ${program}`);
    // The doctor finds it; and every user can see that nothing is mounted there.
    if (line.words[0] === 'doctor') t.is((await shell(typed)).exit, 12);
    else await failsWith(t, shell, typed, line.words[0] === 'top' ? 11 : 7);
  }
});

test.serial('a disk that is mounted read-only', async (t) => {
  const scratch = await scratchDirectory(t);
  const readOnly = path.join(scratch, 'read-only');
  await mkdir(readOnly);
  await prepared(t, scratch);
  await run('mount', ['--bind', scratch, readOnly]);
  t.teardown(() => run('umount', ['-l', readOnly]));
  await run('mount', ['-o', 'remount,bind,ro', readOnly]);
  const shell = await shellIn(t, readOnly);
  for (const line of everyCommand('images').filter(
    ({ doing }) => doing === 'makes' || doing === 'changes',
  )) {
    const typed = typedOf(line);
    if (line.words[0] === 'doctor') t.is((await shell(typed)).exit, 12);
    else if (line.words[0] === 'recover') t.is((await shell(typed)).exit, 0);
    else await failsWith(t, shell, typed, 7);
  }
});

test.serial('a working directory that was removed', async (t) => {
  const scratch = await scratchDirectory(t);
  const shell = await prepared(t, scratch);
  const gone = (typed: string) => `mkdir gone; cd gone; rmdir ../gone; ${typed}`;
  const relative = /working directory was removed/;
  for (const typed of [
    'info vm',
    'list',
    'create new 1G',
    'clone vm new',
    'convert a b',
    'doctor .',
    'mount a b',
    'umount a',
  ]) {
    await failsWith(t, shell, gone(`pcow ${typed}`), 4, relative);
  }
  t.is((await shell(gone(`pcow info ${scratch}/images/vm`))).exit, 0);
});

test.serial('no more descriptors: none to load Pcow with, or enough for one image', async (t) => {
  const scratch = await scratchDirectory(t);
  const shell = await prepared(t, scratch);
  // It does not matter how many Node itself needs: this is the first number that is too small for
  // Pcow.
  let enough = 40;
  while ((await shell(`ulimit -n ${enough - 1}; pcow info images/base`)).exit === 0) enough -= 1;
  const typed = `ulimit -n ${enough - 1}; pcow info images/base`;
  await failsWith(t, shell, typed, 9, /may not open any more files/, /ulimit -n 1024/);
  for (const line of everyCommand('images')
    .filter(({ doing }) => doing === 'reads')
    .slice(0, 4)) {
    const typed = `ulimit -n 64; ${typedOf(line)}`;
    const found = await shell(typed);
    if (found.exit !== 0) isSentence(t, typed, found);
  }
});

test.serial('names that are too long, and links to themselves', async (t) => {
  const scratch = await scratchDirectory(t);
  const shell = await prepared(t, scratch);
  await symlink('loop', path.join(scratch, 'loop'));
  await mkdir(path.join(scratch, 'mnt'));
  const long = 'n'.repeat(300);
  for (const typed of [
    'info loop',
    'list loop',
    'create loop/new 1G',
    'clone loop new',
    'convert loop new.raw',
    'doctor loop',
  ]) {
    await failsWith(t, shell, `pcow ${typed}`, 3, /leads back to itself/);
  }
  for (const typed of [
    `info ${long}`,
    `create ${long} 1G`,
    `clone images/vm ${long}`,
    `convert images/vm@s1 ${long}.raw`,
  ]) {
    await failsWith(t, shell, `pcow ${typed}`, 3);
  }
  for (const typed of [
    `export images/vm ${long}`,
    `list ${long}`,
    `doctor ${long}`,
    `snapshot images/vm@${long}`,
  ]) {
    await failsWith(t, shell, `pcow ${typed}`, 3);
  }
  await failsWith(t, shell, `pcow import vm.export ${long}`, 3);
  for (const typed of ['mount loop mnt', `mount ${long} mnt`, 'mount images loop', 'umount loop']) {
    await failsWith(t, shell, `pcow ${typed}`, 11);
  }
});
