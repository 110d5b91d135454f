/** The C programs of test/programs, built when a test needs them. */
import { type ChildProcessByStdio, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import type { ExecutionContext } from 'ava';

const run = promisify(execFile);
const sources = fileURLToPath(new URL('../../../test/programs/', import.meta.url));

/** The path of the built program. */
export async function program(name: string, scratch: string): Promise<string> {
  return build(name, path.join(scratch, name), []);
}

/** The same of a library to preload. */
export async function preloadable(name: string, scratch: string): Promise<string> {
  return build(name, path.join(scratch, `${name}.so`), ['-shared', '-fPIC']);
}

async function build(name: string, output: string, options: string[]): Promise<string> {
  const built = process.env.PCOW_TEST_PROGRAMS; // test/programs/Makefile
  if (built !== undefined) return path.join(built, path.basename(output));
  const source = path.join(sources, `${name}.c`);
  await run('gcc', [
    '-O2',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-pthread',
    ...options,
    '-o',
    output,
    source,
    '-ldl',
  ]);
  return output;
}

/** A program that answers each line with a line. It ends with the test. */
export class Conversation {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;
  /** Resolves when it has ended, for whatever reason. */
  readonly closed: Promise<unknown>;
  /** Its first line. */
  greeting = '';

  private constructor(t: ExecutionContext<unknown>, file: string, words: string[]) {
    this.#child = spawn(file, words, { stdio: ['pipe', 'pipe', 'inherit'] });
    t.teardown(() => this.#child.kill('SIGKILL'));
    this.closed = once(this.#child, 'close');
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  /** A program that prints nothing at first. */
  static begin(t: ExecutionContext<unknown>, file: string, ...words: string[]): Conversation {
    return new Conversation(t, file, words);
  }

  /** Resolves when it has printed its first line. */
  static async start(
    t: ExecutionContext<unknown>,
    file: string,
    ...words: string[]
  ): Promise<Conversation> {
    const conversation = new Conversation(t, file, words);
    conversation.greeting = await conversation.#answer();
    return conversation;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async ask(line: string): Promise<string> {
    this.#child.stdin.write(`${line}\n`);
    return this.#answer();
  }

  /** By SIGKILL, or by closing its input. */
  async end(signal?: NodeJS.Signals): Promise<void> {
    if (signal) this.#child.kill(signal);
    else this.#child.stdin.end();
    await this.closed;
  }

  /** By closing its input; returns its remaining output. */
  async endWithAnswer(): Promise<string> {
    this.#child.stdin.end();
    const answer = await this.#answer();
    await this.closed;
    return answer;
  }

  async #answer(): Promise<string> {
    const { value, done } = (await this.#lines.next()) as IteratorResult<string, undefined>;
    if (done) throw new Error('the program has ended');
    return value;
  }
}
