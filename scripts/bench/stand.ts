/**
 * The environment of a comparison: a scratch directory, the programs of scripts/bench/programs,
 * mounts of Pcow and of its peers. close() leaves nothing behind, whatever happened before.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { repository } from '../guest/files.js';
import { Registry } from '../registry/debian.js';
import type { Medium } from './comparison.js';
import { Link, type Shape } from './link.js';

const run = promisify(execFile);
const sources = path.join(repository, 'scripts/bench/programs');
export const pcow = path.join(repository, 'dist/cli/pcow.cjs');
const monitor = path.join(repository, 'native/build/Release/libpcow-monitor.so');

export const lastProcessor = os.availableParallelism() - 1;

/** A file that a peer or Pcow serves, until end(). */
export interface Served {
  file: string;
  end(): Promise<void>;
}

export class Stand {
  readonly #ends: (() => Promise<void>)[] = [];
  #numbers = 0;
  #closing: Promise<void> | undefined;

  private constructor(readonly scratch: string) {}

  static async open(medium: Medium): Promise<Stand> {
    const parent = path.join(repository, 'build/bench');
    await mkdir(parent, { recursive: true });
    const stand = new Stand(await mkdtemp(path.join(parent, 'run-')));
    if (medium === 'memory') {
      await run('mount', ['-t', 'tmpfs', 'tmpfs', stand.scratch]);
      stand.atEnd(async () => void (await run('umount', [stand.scratch])));
    }
    await mkdir(stand.path('bin'));
    await run('make', ['-s', '-C', sources, `OUT=${stand.path('bin')}`]);
    return stand;
  }

  path(name: string): string {
    return path.join(this.scratch, name);
  }

  program(name: string): string {
    return this.path(`bin/${name}`);
  }

  /** An unused path. */
  fresh(name: string): string {
    return this.path(`${name}-${++this.#numbers}`);
  }

  /** Ends everything that was started here, the newest first. Afterwards nothing can be started. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    for (const end of this.#ends.splice(0).reverse()) await end();
    await rm(this.scratch, { recursive: true, force: true, maxRetries: 3 });
  }

  /** To be done at close(), or earlier by the returned function; once. */
  atEnd(end: () => Promise<void>): () => Promise<void> {
    let done: Promise<void> | undefined;
    const once = () => (done ??= end());
    if (this.#closing) {
      void once();
      throw new Error('the benchmark was interrupted');
    }
    this.#ends.push(once);
    return once;
  }

  /**
   * This process, and the processes that it starts without a processor of their own, until close()
   * or the returned function.
   */
  async place(cpus: string): Promise<() => Promise<void>> {
    const put = async (where: string): Promise<void> => {
      await run('taskset', ['--all-tasks', '--cpu-list', '--pid', where, String(process.pid)]);
    };
    const restore = this.atEnd(() => put(`0-${lastProcessor}`));
    await put(cpus);
    return restore;
  }

  /** Lowers a limit of the kernel, until close() or the returned function. */
  async raise(setting: string, value: number): Promise<() => Promise<void>> {
    const before = await readFile(setting, 'utf8');
    if (Number(before) >= value) return () => Promise.resolve();
    const restore = this.atEnd(() => writeFile(setting, before));
    await writeFile(setting, String(value));
    return restore;
  }

  /** A mount of a directory of images, which is removed with it. `cpus` as for taskset(1). */
  async mount(
    cpus: string,
    directory = this.fresh('images'),
    ...options: string[]
  ): Promise<Mount> {
    const mountpoint = this.fresh('mnt');
    await mkdir(directory, { recursive: true });
    await mkdir(mountpoint);
    const started = run('taskset', [
      '-c',
      cpus,
      process.execPath,
      pcow,
      'mount',
      ...options,
      directory,
      mountpoint,
    ]);
    const end = this.atEnd(async () => {
      await started.catch(() => undefined);
      await run(process.execPath, [pcow, 'umount', mountpoint]);
      await rm(directory, { recursive: true, force: true });
    });
    await started;
    return { directory, mountpoint, end };
  }

  /** A qcow2 image as a file, by the FUSE export of qemu-storage-daemon. */
  async fuseExport(image: string, cpus: string): Promise<Served> {
    const file = this.fresh('export');
    await writeFile(file, '');
    const daemon = this.#spawn('taskset', [
      ...['-c', cpus, 'qemu-storage-daemon'],
      ...['--blockdev', `driver=file,node-name=file,filename=${image}`],
      ...['--blockdev', 'driver=qcow2,node-name=disk,file=file'],
      ...['--export', `type=fuse,id=export,node-name=disk,mountpoint=${file},writable=on`],
    ]);
    const end = this.atEnd(() => ended(daemon, 'SIGTERM'));
    await until(
      async () => (await stat(file)).size > 0,
      'qemu-storage-daemon did not export its image',
    );
    return { file, end };
  }

  /** A qcow2 image as a file, by qemu-nbd and nbdfuse. */
  async nbd(image: string, cpus: string): Promise<Served> {
    const socket = this.fresh('nbd');
    const server = this.#spawn('taskset', [
      ...[
        '-c',
        cpus,
        'qemu-nbd',
        '--persistent',
        '--shared=8',
        '--format=qcow2',
        '--cache=writeback',
      ],
      ...[`--socket=${socket}`, image],
    ]);
    const endServer = this.atEnd(() => ended(server, 'SIGTERM'));
    await until(() => Promise.resolve(existsSync(socket)), 'qemu-nbd did not start');
    const file = this.fresh('nbd-file');
    await writeFile(file, '');
    const client = this.#spawn('taskset', ['-c', cpus, 'nbdfuse', file, '--unix', socket]);
    const end = this.atEnd(async () => {
      await run('fusermount3', ['-u', file]).catch(() => undefined);
      await ended(client, 'SIGTERM');
      await endServer();
    });
    await until(async () => (await stat(file)).size > 0, 'nbdfuse did not start');
    return { file, end };
  }

  /** Debian's registry, empty. Its files are removed with it. */
  async registry(): Promise<{ host: string; end: () => Promise<void> }> {
    const directory = this.fresh('registry');
    const registry = await Registry.make(directory);
    const end = this.atEnd(async () => {
      await registry.stop('SIGTERM');
      await rm(directory, { recursive: true });
    });
    await registry.start();
    return { host: registry.host, end };
  }

  /** A link to a server of this machine: as fast as this machine, if it has no shape. */
  async link(to: string, shape: Shape | null = null): Promise<Link> {
    const link = await Link.open(to, shape);
    this.atEnd(() => link.close());
    return link;
  }

  /** The command that runs another one under the monitor. */
  monitored(): string[] {
    return ['env', `LD_PRELOAD=${monitor}`];
  }

  /** Runs a program to its end; its output is JSON. */
  async json<T>(...words: string[]): Promise<T> {
    const [command = '', ...rest] = words;
    const { stdout } = await run(command, rest, { maxBuffer: 1 << 26 });
    return JSON.parse(stdout) as T;
  }

  async command(...words: string[]): Promise<string> {
    const [command = '', ...rest] = words;
    return (await run(command, rest, { maxBuffer: 1 << 26 })).stdout;
  }

  /** A program that answers each line with a line. It has ended at end() at the latest. */
  async conversation(...words: string[]): Promise<Conversation> {
    const [command = '', ...rest] = words;
    const child = spawn(command, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
    const conversation = new Conversation(
      child,
      this.atEnd(() => ended(child, 'SIGKILL')),
    );
    await conversation.answer();
    return conversation;
  }

  #spawn(command: string, words: string[]): ChildProcess {
    return spawn(command, words, { stdio: ['ignore', 'ignore', 'inherit'] });
  }
}

export interface Mount {
  directory: string;
  mountpoint: string;
  end(): Promise<void>;
}

export class Conversation {
  readonly #child: ChildProcess;
  readonly #kill: () => Promise<void>;
  #received = '';
  #waiting: { resolve: (line: string) => void; reject: (error: Error) => void } | undefined;

  constructor(child: ChildProcess, kill: () => Promise<void>) {
    this.#child = child;
    this.#kill = kill;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#received += text;
      const end = this.#received.indexOf('\n');
      if (end < 0 || !this.#waiting) return;
      const line = this.#received.slice(0, end);
      this.#received = this.#received.slice(end + 1);
      const { resolve } = this.#waiting;
      this.#waiting = undefined;
      resolve(line);
    });
    child.once('close', () =>
      this.#waiting?.reject(new Error('a program of the benchmark has ended')),
    );
  }

  answer(): Promise<string> {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
    });
  }

  async ask<T>(): Promise<T> {
    const answer = this.answer();
    this.#child.stdin?.write('\n');
    return JSON.parse(await answer) as T;
  }

  /** Lets it end by itself. */
  async end(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null)
      await once(this.#child, 'close');
    await this.#kill();
  }
}

async function ended(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const end = once(child, 'exit');
  child.kill(signal);
  await end;
}

async function until(condition: () => Promise<boolean>, complaint: string): Promise<void> {
  for (let tries = 0; tries < 500; ++tries) {
    if (await condition()) return;
    await sleep(20);
  }
  throw new Error(complaint);
}

export async function freshFile(file: string, size: number): Promise<void> {
  await writeFile(file, '');
  await run('truncate', ['-s', String(size), file]);
}
