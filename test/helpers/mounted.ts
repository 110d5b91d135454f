/** A mount for one test, in its own process, so that a failure in it cannot hang the test. */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import type { ExecutionContext } from 'ava';

const run = promisify(execFile);
const repository = fileURLToPath(new URL('../../../', import.meta.url));
const READY_MS = 120_000;

export const pcowProgram = path.join(repository, 'dist/cli/pcow.cjs');

/**
 * Mounts an image directory. Whatever the test does, the mount is gone afterwards: the clean-up
 * ends the process (the connection of a mount that hangs is aborted), and then removes the
 * mountpoint. If the test is killed, the kernel ends the process.
 */
export function mounted(
  t: ExecutionContext<unknown>,
  images: string,
  mountPoint: string,
  ...options: string[]
): Promise<ChildProcess> {
  return mountedBy(t, [], images, mountPoint, ...options);
}

/** The same; `prefix`: the words before the command, for example to run it as another user. */
export async function mountedBy(
  t: ExecutionContext<unknown>,
  prefix: string[],
  images: string,
  mountPoint: string,
  ...options: string[]
): Promise<ChildProcess> {
  const words = [
    ...prefix,
    process.execPath,
    pcowProgram,
    'mount',
    '--foreground',
    ...options,
    images,
    mountPoint,
  ];
  let said = '';
  const daemon = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...words], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.teardown(() => takeDown(daemon, mountPoint));
  const ended = once(daemon, 'close').then(() => {
    throw new Error(`the mount ended: ${said}`);
  });
  const ready = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`no mount after ${READY_MS} ms: ${said}`)),
      READY_MS,
    );
    const listen = (text: string): void => {
      said += text;
      if (!said.includes('is mounted on')) return;
      clearTimeout(timer);
      resolve();
    };
    daemon.stdout.setEncoding('utf8').on('data', listen);
    daemon.stderr.setEncoding('utf8').on('data', listen);
  });
  ended.catch(() => undefined);
  await Promise.race([ready, ended]);
  return daemon;
}

async function takeDown(daemon: ChildProcess, mountPoint: string): Promise<void> {
  const gone =
    daemon.exitCode !== null || daemon.signalCode !== null
      ? Promise.resolve()
      : once(daemon, 'close');
  const connection = await connectionOf(mountPoint);
  // While it is still listed: when it is unmounted, the kernel may give its number to the next
  // mount, of another test.
  if (connection !== null)
    await writeFile(`/sys/fs/fuse/connections/${connection}/abort`, '1').catch(() => undefined);
  // not mounted any more: fine
  await run('fusermount3', ['-u', '-z', mountPoint]).catch(() => undefined);
  daemon.kill('SIGKILL');
  await gone;
}

/** The number of the mount's FUSE connection, or null if nothing is mounted there. */
export async function connectionOf(mountPoint: string): Promise<string | null> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  const line = table.split('\n').find((entry) => entry.split(' ')[4] === mountPoint);
  return /^\d+ \d+ \d+:(\d+) /.exec(line ?? '')?.[1] ?? null;
}
