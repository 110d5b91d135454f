/**
 * Whether the process of a mount answers. It may have died, be stopped (SIGSTOP), or hang.
 *
 * A process whose request was accepted by a mount that does not answer cannot even be killed. So a
 * helper process asks first, which can be left behind; nothing else accesses a mount before. The
 * helper waits without a limit while the mount's process is active, because a mount may be slow.
 * Only the time in which the process does nothing counts.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, readlink, stat } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { type PcowMount, pcowMounts } from './mount-table.js';
import { word } from '../engine/quote.js';

/**
 * Seconds for which a mount may be inactive before it counts as hanging. The variable is for tests,
 * and for slow disks.
 */
const IDLE_LIMIT = Number(process.env.PCOW_MOUNT_LIMIT ?? '') || 30;

/** The same for a stopped mount. Snapshots never stop a mount, so it was stopped on purpose. */
const STOPPED_LIMIT = 3;

/** A mount that is active but never answers may take this many times the limit. */
const PATIENCE = 10;

/** Milliseconds between checks of what a mount does. */
const LOOK = 50;

/** Milliseconds between checks of a mount that is working on a request. */
const ASK_AGAIN = 5000;

export type Life =
  | { state: 'alive' }
  /** Its process has ended: every access below its mountpoint fails with ENOTCONN. */
  | { state: 'dead' }
  /** `pid` is null if this process cannot see it. */
  | { state: 'silent'; stopped: boolean; pid: number | null };

export interface Asking {
  /** Seconds, instead of the usual limits. */
  limit?: number | undefined;
  /** Called once, if the answer takes long. */
  onWait?: (() => void) | undefined;
}

/** Checks a mount, by its mountpoint as the kernel lists it. */
export async function lifeOf(
  mount: Pick<PcowMount, 'mountpoint' | 'directory'>,
  asking: Asking = {},
): Promise<Life> {
  // --cached=never, because the kernel keeps the attributes of a mountpoint for a second. LC_ALL=C,
  // because the message of `stat` is compared.
  const helper = spawn('stat', ['--cached=never', '--format=%i', '--', mount.mountpoint], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  let said = '';
  helper.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const ended = once(helper, 'close').then((): Life => {
    // Any other result is an answer, too: for example, this user may have no permission.
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

/** Resolves when the mount has been inactive for too long. */
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
    // it has answered
    await sleep(LOOK, undefined, { signal }).catch(() => new Promise(() => undefined));
    // Until the helper waits for the mount, its time does not count.
    if (!(await isWaiting(helper.pid ?? 0))) continue;
    all += 1;
    if (all === 40) onWait?.();
    pid ??= await processOfDirectory(directory);
    const now = pid === null ? { state: 'idle', work: '' } : await doingOf(pid);
    stopped = now.state === 'stopped' ? stopped + 1 : 0;
    idle = now.state === 'busy' || now.work !== before ? 0 : idle + 1;
    before = now.work;
    if (stopped >= Math.min(looks, (STOPPED_LIMIT * 1000) / LOOK))
      return { state: 'silent', stopped: true, pid };
    if (idle >= looks || all >= looks * PATIENCE) return { state: 'silent', stopped: false, pid };
  }
}

async function isWaiting(helper: number): Promise<boolean> {
  const status = await statusOf(`/proc/${helper}/stat`);
  return status !== null && status.command === 'stat' && status.state !== 'R';
}

/** What a process does. `work` says how much time its main thread has used so far. */
async function doingOf(pid: number): Promise<{ state: 'stopped' | 'busy' | 'idle'; work: string }> {
  const main = await statusOf(`/proc/${pid}/task/${pid}/stat`);
  if (main === null) return { state: 'busy', work: '' }; // it has ended, so the answer will come
  if (main.state === 'T' || main.state === 't') return { state: 'stopped', work: '' };
  return { state: main.state === 'R' ? 'busy' : 'idle', work: main.ticks };
}

/** The process that serves a directory, as far as this process can see it. */
export async function stateOfServer(
  directory: string,
): Promise<{ pid: number | null; stopped: boolean }> {
  const pid = await processOfDirectory(directory);
  return { pid, stopped: pid !== null && (await doingOf(pid)).state === 'stopped' };
}

/** proc_pid_stat(5): a command may contain spaces and parentheses. */
async function statusOf(
  file: string,
): Promise<{ command: string; state: string; ticks: string } | null> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const [, command, rest] = /\((.*)\) (.*)/s.exec(text) ?? [];
  if (command === undefined || rest === undefined) return null;
  const fields = rest.split(' ');
  return { command, state: fields[0] ?? '', ticks: `${fields[11]} ${fields[12]}` };
}

/**
 * The process that serves an image directory holds its lock. Returns null if this process cannot
 * see one.
 */
async function processOfDirectory(directory: string): Promise<number | null> {
  const [locks, status] = await Promise.all([
    readFile('/proc/locks', 'utf8').catch(() => ''),
    stat(directory, { bigint: true }).catch(() => null),
  ]);
  for (const line of locks.split('\n')) {
    const [, pid, inode] = /FLOCK +\S+ +WRITE +(\d+) +[0-9a-f]+:[0-9a-f]+:(\d+) /.exec(line) ?? [];
    if (
      pid !== undefined &&
      inode === status?.ino.toString() &&
      (await serves(Number(pid), directory))
    )
      return Number(pid);
  }
  return null;
}

/**
 * Inode numbers are unique within one filesystem only, and the device number in /proc/locks is not
 * always that of stat(2).
 */
async function serves(pid: number, directory: string): Promise<boolean> {
  try {
    const files = await readdir(`/proc/${pid}/fd`);
    const targets = await Promise.all(
      files.map((file) => readlink(`/proc/${pid}/fd/${file}`).catch(() => '')),
    );
    return targets.includes(directory);
  } catch {
    return true; // this user may not look at it
  }
}

/** What is wrong with a mount, and how to fix it. */
export interface Trouble {
  message: string;
  cure: string;
}

/** Returns null for a mount that is alive. */
export function troubleOf(
  { mountpoint, directory, connection }: PcowMount,
  life: Life,
): Trouble | null {
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
          message: `the mount on ${mountpoint} does not answer, and this process can't see the process of the mount`,
          cure: `if it hangs: echo 1 > /sys/fs/fuse/connections/${connection}/abort, then pcow umount ${word(mountpoint)}`,
        };
      }
      return stopped
        ? {
            message: `the mount on ${mountpoint} does not answer: its process ${pid} is stopped`,
            cure: `continue it: kill -CONT ${pid}`,
          }
        : {
            message: `the mount on ${mountpoint} does not answer: its process ${pid} hangs, or waits for its disk`,
            cure: `if it does not recover: kill -9 ${pid}, then pcow umount ${word(mountpoint)}, and mount ${directory} again; nothing is lost`,
          };
    }
  }
}

/**
 * Runs work that asks a mount, and checks meanwhile that the mount is alive. `fail` makes the error
 * if it is not.
 */
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
  watching.catch(() => undefined); // the race reports it, or nothing waits for it any more
  try {
    return await Promise.race([result, watching]);
  } finally {
    over.abort();
    result.catch(() => undefined);
  }
}

let leftBehind = false;

/**
 * Whether this process has requests to a mount that will never be answered. Then it must exit
 * without waiting for them.
 */
export function hasQuestionsLeft(): boolean {
  return leftBehind;
}

/**
 * The mount into which a path leads. It is found without accessing the mount: links are read one by
 * one. Returns null if the path leads elsewhere.
 */
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

/** The kernel's limit. */
const MOST_LINKS = 40;

function workingDirectory(): string[] | null {
  try {
    return process.cwd().split('/');
  } catch {
    return null; // removed: the code that uses the path reports that
  }
}
