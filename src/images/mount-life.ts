/**
 * Whether the process of a mount answers: it may have died, be stopped (SIGSTOP), or hang.
 *
 * A process that asks a mount which has taken its question and does not answer can't even be killed. So a helper asks, which can be
 * left behind, and nobody else touches a mount before. The helper waits without a limit while the mount's process does something:
 * a mount may be slow. Only the time in which it does nothing counts.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, readlink, stat } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { type PcowMount, pcowMounts } from './mount-table.js';
import { word } from '../engine/quote.js';

/** Seconds that a mount may do nothing before it counts as hanging: the variable is for tests, and for slow disks. */
const IDLE_LIMIT = Number(process.env.PCOW_MOUNT_LIMIT ?? '') || 30;

/** The same for one that is stopped. A snapshot stops no mount, so somebody means it. */
const STOPPED_LIMIT = 3;

/** How many times the limit a mount may take that does something, but never answers. */
const PATIENCE = 10;

/** Milliseconds between looks at what a mount does. */
const LOOK = 50;

/** Milliseconds between questions to a mount that is working on something. */
const ASK_AGAIN = 5000;

export type Life =
  | { state: 'alive' }
  /** Its process has ended: everything below its mountpoint is ENOTCONN for ever. */
  | { state: 'dead' }
  /** `pid` is null where this process can't see it. */
  | { state: 'silent'; stopped: boolean; pid: number | null };

export interface Asking {
  /** Seconds, in place of the usual limits. */
  limit?: number | undefined;
  /** Called once, where the answer takes its time. */
  onWait?: (() => void) | undefined;
}

/** Asks a mount, by its mountpoint as the kernel lists it. */
export async function lifeOf(mount: Pick<PcowMount, 'mountpoint' | 'directory'>, asking: Asking = {}): Promise<Life> {
  // LC_ALL: the message is compared.
  const helper = spawn('stat', ['--format=%i', '--', mount.mountpoint], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  let said = '';
  helper.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const ended = once(helper, 'close').then((): Life => {
    // Anything else is an answer, too: this user has no right to look, for example.
    return { state: /not connected|connection abort/.test(said) ? 'dead' : 'alive' };
  });
  const over = new AbortController();
  try {
    return await Promise.race([ended, silence(mount, helper, asking, over.signal)]);
  } finally {
    over.abort();
    ended.catch(() => undefined);
    helper.kill('SIGKILL');
    helper.stderr.destroy();
    helper.unref();
  }
}

/** Resolves when the mount has done nothing for as long as it may. */
async function silence(
  { directory }: Pick<PcowMount, 'directory'>,
  helper: ChildProcess,
  { limit, onWait }: Asking,
  signal: AbortSignal,
): Promise<Life> {
  const looks = ((limit ?? IDLE_LIMIT) * 1000) / LOOK;
  let pid: number | null = null;
  let before = '';
  let [idle, stopped, all] = [0, 0, 0];
  for (;;) {
    await sleep(LOOK, undefined, { signal }).catch(() => new Promise(() => undefined)); // it has answered
    // A helper that has not come to ask yet tells nothing of the mount.
    if (!(await isWaiting(helper.pid ?? 0))) continue;
    all += 1;
    if (all === 40) onWait?.();
    pid ??= await processOfDirectory(directory);
    const now = pid === null ? { state: 'idle', work: '' } : await doingOf(pid);
    stopped = now.state === 'stopped' ? stopped + 1 : 0;
    idle = now.state === 'busy' || now.work !== before ? 0 : idle + 1;
    before = now.work;
    if (stopped >= Math.min(looks, (STOPPED_LIMIT * 1000) / LOOK)) return { state: 'silent', stopped: true, pid };
    if (idle >= looks || all >= looks * PATIENCE) return { state: 'silent', stopped: false, pid };
  }
}

async function isWaiting(helper: number): Promise<boolean> {
  const status = await statusOf(`/proc/${helper}/stat`);
  return status !== null && status.command === 'stat' && status.state !== 'R';
}

/** What a process does: `work` counts what it has done so far, of its processor and of its main thread. */
async function doingOf(pid: number): Promise<{ state: 'stopped' | 'busy' | 'idle'; work: string }> {
  const main = await statusOf(`/proc/${pid}/task/${pid}/stat`);
  if (main === null) return { state: 'busy', work: '' }; // it has ended: the answer is on its way
  if (main.state === 'T' || main.state === 't') return { state: 'stopped', work: '' };
  return { state: main.state === 'R' ? 'busy' : 'idle', work: main.ticks };
}

/** The process that serves a directory, as far as it can be seen. */
export async function stateOfServer(directory: string): Promise<{ pid: number | null; stopped: boolean }> {
  const pid = await processOfDirectory(directory);
  return { pid, stopped: pid !== null && (await doingOf(pid)).state === 'stopped' };
}

/** proc_pid_stat(5): a command may hold spaces and parentheses. */
async function statusOf(file: string): Promise<{ command: string; state: string; ticks: string } | null> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const [, command, rest] = /\((.*)\) (.*)/s.exec(text) ?? [];
  if (command === undefined || rest === undefined) return null;
  const fields = rest.split(' ');
  return { command, state: fields[0] ?? '', ticks: `${fields[11]} ${fields[12]}` };
}

/** The process that serves an image directory has its lock; null where none is to be seen here. */
async function processOfDirectory(directory: string): Promise<number | null> {
  const [locks, status] = await Promise.all([
    readFile('/proc/locks', 'utf8').catch(() => ''),
    stat(directory, { bigint: true }).catch(() => null),
  ]);
  for (const line of locks.split('\n')) {
    const [, pid, inode] = /FLOCK +\S+ +WRITE +(\d+) +[0-9a-f]+:[0-9a-f]+:(\d+) /.exec(line) ?? [];
    if (pid !== undefined && inode === status?.ino.toString() && (await serves(Number(pid), directory)))
      return Number(pid);
  }
  return null;
}

/** Inode numbers are unique on one file system only, and its device number is not always that of stat(2). */
async function serves(pid: number, directory: string): Promise<boolean> {
  try {
    const files = await readdir(`/proc/${pid}/fd`);
    const targets = await Promise.all(files.map((file) => readlink(`/proc/${pid}/fd/${file}`).catch(() => '')));
    return targets.includes(directory);
  } catch {
    return true; // not ours to look at
  }
}

/** What is wrong with a mount, and what to do about it. */
export interface Trouble {
  message: string;
  cure: string;
}

/** null for one that is alive. */
export function troubleOf({ mountpoint, directory, connection }: PcowMount, life: Life): Trouble | null {
  switch (life.state) {
    case 'alive':
      return null;
    case 'dead':
      return {
        message: `the mount on ${mountpoint} has died`,
        cure: `end it with “pcow umount ${word(mountpoint)}”, then mount ${directory} again; nothing is lost`,
      };
    case 'silent': {
      const { pid, stopped } = life;
      if (pid === null) {
        return {
          message: `the mount on ${mountpoint} does not answer, and its process is not to be seen from here`,
          cure: `if it hangs: echo 1 > /sys/fs/fuse/connections/${connection}/abort, then pcow umount ${word(mountpoint)}`,
        };
      }
      return stopped
        ? {
            message: `the mount on ${mountpoint} does not answer: its process ${pid} is stopped`,
            cure: `let it go on: kill -CONT ${pid}`,
          }
        : {
            message: `the mount on ${mountpoint} does not answer: its process ${pid} hangs, or waits for its disk`,
            cure: `if that does not pass: kill -9 ${pid}, then pcow umount ${word(mountpoint)}, and mount ${directory} again; nothing is lost`,
          };
    }
  }
}

/** Does what asks a mount, and goes on asking whether it is alive meanwhile; `fail` makes the error where it is not. */
export async function withMount<T>(
  mount: PcowMount,
  asking: Asking,
  fail: (trouble: Trouble) => Error,
  work: () => Promise<T>,
): Promise<T> {
  const check = async () => {
    const trouble = troubleOf(mount, await lifeOf(mount, asking));
    if (trouble !== null) throw fail(trouble);
  };
  await check();
  const result = work();
  const over = new AbortController();
  const watch = async (): Promise<never> => {
    for (;;) {
      await sleep(ASK_AGAIN, undefined, { signal: over.signal });
      try {
        await check();
      } catch (error) {
        leftBehind = true;
        throw error;
      }
    }
  };
  const watching = watch();
  watching.catch(() => undefined); // it is told by the race, or nobody waits for it any more
  try {
    return await Promise.race([result, watching]);
  } finally {
    over.abort();
    result.catch(() => undefined);
  }
}

let leftBehind = false;

/** Whether this process has questions to a mount that will never be answered: it has to exit without waiting for them. */
export function hasQuestionsLeft(): boolean {
  return leftBehind;
}

/** The mount that a path leads into, found without touching it: links are read one by one. null where it leads elsewhere. */
export async function mountOnTheWay(given: string): Promise<PcowMount | null> {
  const mounts = await pcowMounts();
  if (mounts.length === 0) return null;
  const start = given.startsWith('/') ? [] : workingDirectory();
  if (start === null) return null;
  const left = [...start, ...given.split('/')].filter((part) => part !== '' && part !== '.');
  let done = '/';
  for (let links = 0; left.length > 0;) {
    const next = path.join(done, left.shift() ?? '');
    const mount = mounts.find(({ mountpoint }) => mountpoint === next);
    if (mount !== undefined) return mount;
    const target = await readlink(next).catch(() => null);
    if (target === null) {
      done = next;
    } else if ((links += 1) > MOST_LINKS) {
      return null;
    } else {
      left.unshift(...target.split('/').filter((part) => part !== '' && part !== '.'));
      if (target.startsWith('/')) done = '/';
    }
  }
  return null;
}

/** As the kernel follows. */
const MOST_LINKS = 40;

function workingDirectory(): string[] | null {
  try {
    return process.cwd().split('/');
  } catch {
    return null; // removed: whatever uses the path says so
  }
}
