/**
 * A mount that has died, is stopped, or hangs: no command waits forever, none ends in a stack
 * trace, and each names the mount, its process and the fix. Work that needs no mount continues.
 * Beside a dead mount, another mount of the same directory works as usual.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { connectionOf, mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { everyCommand, type Line, makeImages } from './every-command.js';
import type { Told } from './many-commands.js';
import { fails, pcowIn, succeeds } from './outcome.js';

/** Seconds: for mounts that are certainly inactive. */
const SHORT = 0.3;

interface Stage {
  scratch: string;
  at: (name: string) => string;
}

async function stage(t: ExecutionContext<unknown>): Promise<Stage> {
  const scratch = await scratchDirectory(t);
  await makeImages(scratch);
  for (const name of ['mnt', 'second']) await mkdir(path.join(scratch, name));
  return { scratch, at: (name) => path.join(scratch, name) };
}

/**
 * Runs command lines in turn. The limit applies to mounts that do nothing at all, however slow the
 * machine is.
 */
async function tell(
  t: ExecutionContext<unknown>,
  { scratch }: Stage,
  lines: Line[],
  limit = 30,
): Promise<Told[]> {
  const input = await open(path.join(scratch, 'lone.stream'));
  const child = fork(fileURLToPath(new URL('many-commands.js', import.meta.url)), [], {
    cwd: scratch,
    env: { ...process.env, PCOW_MOUNT_LIMIT: String(limit) },
    stdio: [input.fd, 'ignore', 'inherit', 'ipc'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await input.close();
  const all: Told[] = [];
  child.on('message', (told: Told) => all.push(told));
  child.send(lines.map(({ words }) => words));
  await once(child, 'exit');
  t.is(all.length, lines.length, `it ended after ${all.at(-1)?.words.join(' ')}`);
  return all;
}

const named = (lines: Line[], ...names: string[]) =>
  lines.filter(({ words: [name = ''] }) => names.includes(name));
const asking = (lines: Line[]) => lines.filter(({ doing }) => doing !== 'nothing');
const changing = (lines: Line[]) => [
  ...lines.filter(({ doing, words: [name] }) => doing === 'changes' && name !== 'recover'),
  ...named(lines, 'clone', 'qemu-args', 'libvirt-xml', 'top'),
];

function allSay(t: ExecutionContext<unknown>, all: Told[], ...says: RegExp[]): void {
  for (const { words, exit, said } of all) {
    const typed = words.join(' ');
    // The doctor itself has not failed: it prints its findings.
    t.is(exit, words[0] === 'doctor' ? 12 : 11, `${typed}: ${said}`);
    if (words[0] !== 'doctor') for (const it of says) t.regex(said, it, typed);
  }
}

function allGoOn(t: ExecutionContext<unknown>, all: Told[]): void {
  for (const { words, exit, said } of all) t.is(exit, 0, `${words.join(' ')}: ${said}`);
}

test.serial('a mount that has died, and then another beside it', async (t) => {
  const it = await stage(t);
  const daemon = await mounted(t, it.at('images'), it.at('mnt'));
  daemon.kill('SIGKILL');
  await once(daemon, 'close');
  const died = [/^the mount on \S+\/mnt has died/, /pcow umount \S+\/mnt/];
  allSay(t, await tell(t, it, asking(everyCommand('mnt'))), ...died);
  allSay(t, await tell(t, it, changing(everyCommand('images'))), ...died);
  const pcow = pcowIn(it.scratch);
  await fails(t, pcow('qemu-args', 'mnt/vm'), 11, /has died/);
  t.regex((await pcow('list', 'images')).stderr, /has died/);

  await mounted(t, it.at('images'), it.at('second'));
  const others = ['mount', 'umount', 'login', 'logout', 'trace'];
  const lines = everyCommand('images').filter(({ words: [name = ''] }) => !others.includes(name));
  allGoOn(t, await tell(t, it, lines));
  await fails(t, pcow('info', 'mnt/base'), 11, /has died/);
  await succeeds(t, pcow('info', 'second/base'));
  await fails(t, pcow('mount', 'images', 'mnt'), 11, /mounted on \S+\/second already/);
  await succeeds(t, pcow('umount', 'second'));
});

test.serial('a mount that is stopped', async (t) => {
  const it = await stage(t);
  const daemon = await mounted(t, it.at('images'), it.at('mnt'));
  daemon.kill('SIGSTOP');
  t.teardown(() => daemon.kill('SIGCONT'));
  const stopped = [
    /the mount on \S+\/mnt does not answer: its process \d+ is stopped/,
    new RegExp(`kill -CONT ${daemon.pid}\\b`),
  ];
  allSay(t, await tell(t, it, asking(everyCommand('mnt')), SHORT), ...stopped);
  allSay(t, await tell(t, it, changing(everyCommand('images')), SHORT), ...stopped);
  allSay(t, await tell(t, it, named(everyCommand('images'), 'mount', 'umount'), SHORT), ...stopped);
  allGoOn(
    t,
    await tell(t, it, named(everyCommand('images'), 'info', 'list', 'check', 'completion'), SHORT),
  );
  const pcow = pcowIn(it.scratch);
  await fails(t, pcow('snapshot', 'mnt/vm@new'), 11, ...stopped);
  daemon.kill('SIGCONT');
  await succeeds(t, pcow('snapshot', 'mnt/vm@new'));
});

/**
 * Mounts with a process that stops answering, but still accepts requests: a process that asks it
 * cannot be killed any more.
 */
async function hanging(t: ExecutionContext<unknown>, { at }: Stage): Promise<ChildProcess> {
  const program = fileURLToPath(new URL('hanging-mount.js', import.meta.url));
  const child = fork(program, [at('images'), at('mnt')], {
    stdio: ['ignore', 'inherit', 'ignore', 'ipc'],
  });
  t.teardown(async () => {
    const connection = await connectionOf(at('mnt'));
    child.kill('SIGKILL');
    if (connection !== null)
      await writeFile(`/sys/fs/fuse/connections/${connection}/abort`, '1').catch(() => undefined);
    await pcowIn('/')('umount', at('mnt'));
  });
  await once(child, 'message');
  child.send('hang');
  await once(child, 'message');
  return child;
}

test.serial('a mount that hangs', async (t) => {
  const it = await stage(t);
  const daemon = await hanging(t, it);
  const hangs = [
    /the mount on \S+\/mnt does not answer: its process \d+ hangs/,
    new RegExp(`kill -9 ${daemon.pid}\\b`),
  ];
  allSay(t, await tell(t, it, asking(everyCommand('mnt')), SHORT), ...hangs);
  allSay(
    t,
    await tell(t, it, named(everyCommand('images'), 'snapshot', 'top', 'mount', 'umount'), SHORT),
    ...hangs,
  );
  allGoOn(
    t,
    await tell(t, it, named(everyCommand('images'), 'info', 'list', 'check', 'completion'), SHORT),
  );
  daemon.kill('SIGKILL');
  await once(daemon, 'exit');
  const pcow = pcowIn(it.scratch);
  await succeeds(t, pcow('umount', 'mnt'));
  await succeeds(t, pcow('snapshot', 'images/vm@new'));
});
