/** A directory of images, mounted for one test by its own process (mounted.ts ends it). */
import { type ChildProcess, execFile } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:fs';
import { mkdir, open, readFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import type { ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { eventually } from './eventually.js';
import { mounted } from './mounted.js';
import type { Random } from './random.js';
import { scratchDirectory } from './scratch.js';

const run = promisify(execFile);

export const MiB = 1 << 20;

export interface Status {
  state: string;
  problem: string | null;
  size: number;
  holder: { pid: number; command: string; mount: boolean } | null;
  open: { reading: number; writing: number; snapshots: number };
  lastError: { command: string | null; code: string; errno: string; message: string } | null;
}

/** Returns false if a process uses the mount. */
async function unmounted(point: string): Promise<boolean> {
  try {
    await run('fusermount3', ['-u', point]);
    return true;
  } catch (error) {
    if (String(error).includes('busy')) return false;
    throw error;
  }
}

export class TestMount {
  readonly images: string;
  readonly point: string;
  #daemon: ChildProcess | null = null;
  #log = '';

  constructor(
    readonly t: ExecutionContext<unknown>,
    readonly scratch: string,
  ) {
    this.images = path.join(scratch, 'images');
    this.point = path.join(scratch, 'mnt');
  }

  get daemon(): ChildProcess {
    if (!this.#daemon) throw new Error('it is not mounted');
    return this.#daemon;
  }

  async mount(...options: string[]): Promise<void> {
    this.#daemon = await mounted(this.t, this.images, this.point, ...options);
    for (const stream of [this.#daemon.stdout, this.#daemon.stderr]) {
      stream?.on('data', (text: string) => {
        this.#log += text;
        this.#daemon?.emit('said');
      });
    }
  }

  /** Waits for a line in its log, after it was ready. */
  async logged(line: RegExp): Promise<void> {
    const limit = AbortSignal.timeout(600_000);
    while (!line.test(this.#log)) await once(this.daemon, 'said', { signal: limit });
  }

  /**
   * Ends it as a user would. Fails if it stays in use. (`pcow list` of another test, which looks at
   * every mount of the machine, has it in use for a moment.)
   */
  async unmount(): Promise<void> {
    await eventually(() => this.unmountIfIdle());
  }

  /** One try. Returns false, and changes nothing, if any process uses the mount at this moment. */
  async unmountIfIdle(): Promise<boolean> {
    const busy = new AbortController();
    const ended = once(this.daemon, 'close', { signal: busy.signal });
    ended.catch(() => undefined);
    if (!(await unmounted(this.point))) {
      busy.abort();
      return false;
    }
    const [status, signal] = (await ended) as [number | null, string | null];
    if (status !== 0) throw new Error(`the mount ended with ${status ?? signal}`);
    this.#daemon = null;
    return true;
  }

  /** SIGKILL, and nothing else: the mountpoint remains. */
  async kill(): Promise<void> {
    const ended = once(this.daemon, 'close');
    this.daemon.kill('SIGKILL');
    await ended;
    this.#daemon = null;
  }

  /** The image file. */
  image(name: string): string {
    return path.join(this.images, `${name}.pcow`);
  }

  /** The flat file. */
  file(name: string): string {
    return path.join(this.point, name);
  }

  /** A control file of an image, or a file below its control directory. */
  control(name: string, ...parts: string[]): string {
    return path.join(this.point, '.pcow', name, ...parts);
  }

  async status(name: string): Promise<Status> {
    return JSON.parse(await readFile(this.control(name, 'status'), 'utf8')) as Status;
  }

  /** One write to a control file. */
  async write(text: string | Uint8Array, ...parts: string[]): Promise<void> {
    // As a shell's `>`, but never makes a file.
    const file = await open(
      path.join(this.point, '.pcow', ...parts),
      constants.O_WRONLY | constants.O_TRUNC,
    );
    try {
      await (typeof text === 'string' ? file.write(text) : file.write(text));
    } finally {
      await file.close();
    }
  }

  /** A command that must fail with this errno. Returns its message in `status`. */
  async refused(
    errno: string,
    text: string | Uint8Array,
    name: string,
    control: string,
  ): Promise<string> {
    await this.t.throwsAsync(
      this.write(text, name, control),
      { code: errno },
      `${control} ${String(text)}`,
    );
    const { lastError } = await this.status(name);
    this.t.is(lastError?.command, control);
    this.t.is(lastError?.errno, errno);
    return lastError?.message ?? '';
  }
}

/** Options of a mount: with a clean store, or without. */
export function anyStore(random: Random): string[] {
  return random.chance(0.5) ? ['--clean-store', '64M'] : [];
}

/**
 * Images by name and size in bytes, in a directory that is not mounted yet. `parent`: in which
 * filesystem.
 */
export async function imagesFor(
  t: ExecutionContext<unknown>,
  images: Record<string, number>,
  parent?: string,
): Promise<TestMount> {
  const mount = new TestMount(t, await scratchDirectory(t, parent));
  await mkdir(mount.images);
  await mkdir(mount.point);
  for (const [name, size] of Object.entries(images))
    await Image.create(mount.image(name), { size });
  return mount;
}

export async function mountedImages(
  t: ExecutionContext<unknown>,
  images: Record<string, number>,
): Promise<TestMount> {
  const mount = await imagesFor(t, images);
  await mount.mount();
  return mount;
}
