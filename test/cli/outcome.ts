/**
 * Runs the programs as a user does, and returns the complete result. Most commands run in processes
 * that are kept for the next one (kept-processes.ts).
 */
import { execFile, type ExecFileOptions } from 'node:child_process';
import { symlink } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { scratchDirectory } from '../helpers/scratch.js';
import { inKeptProcess, mayShareProcess } from './kept-processes.js';

export interface Outcome {
  exit: number;
  stdout: string;
  stderr: string;
}

/** A command line of one of the programs that does not need a shell. */
const WORDS_ONLY = /^pcow(-img)?( [\w@.:/+-]+)+$/;

export type Run = (...words: string[]) => Promise<Outcome>;

/** `pcow` in a working directory. */
export function pcowIn(directory: string): Run {
  return runner('pcow', directory);
}

/** `pcow-img` in a working directory. */
export function pcowImgIn(directory: string): Run {
  return runner('pcow-img', directory);
}

/** `mount.fuse.pcow` in a working directory. */
export function mountHelperIn(directory: string): Run {
  return runner('mount-fuse-pcow', directory);
}

/**
 * The result of a shell command line in a working directory: the shell finds both programs by their
 * names.
 */
export async function shellIn(
  t: ExecutionContext<unknown>,
  cwd: string,
): Promise<(line: string) => Promise<Outcome>> {
  const programs = await scratchDirectory(t);
  for (const name of ['pcow', 'pcow-img']) await symlink(fileOf(name), path.join(programs, name));
  const env = { ...process.env, PATH: `${programs}:${process.env.PATH ?? ''}` };
  return (line) => {
    const [program = '', ...words] = line.split(' ');
    if (WORDS_ONLY.test(line)) return runner(program, cwd)(...words);
    return outcomeOf('sh', ['-c', line], { cwd, env });
  };
}

/** The output of a command that must succeed. */
export async function succeeds(
  t: ExecutionContext<unknown>,
  outcome: Promise<Outcome>,
): Promise<string> {
  const { exit, stdout, stderr } = await outcome;
  t.is(exit, 0, stderr);
  return stdout;
}

/**
 * A command that must fail: with this exit code and these messages (the sentence and the next
 * step), and nothing on stdout.
 */
export async function fails(
  t: ExecutionContext<unknown>,
  outcome: Promise<Outcome>,
  exit: number,
  ...says: RegExp[]
): Promise<void> {
  const found = await outcome;
  t.is(found.exit, exit, found.stderr);
  t.is(found.stdout, '');
  t.regex(found.stderr, /^pcow(-img)?: \S/);
  t.notRegex(found.stderr, /unexpected failure|\n +at /);
  for (const words of says) t.regex(found.stderr, words);
}

function fileOf(program: string): string {
  return fileURLToPath(new URL(`../../cli/${program}.cjs`, import.meta.url));
}

function outcomeOf(file: string, words: string[], options: ExecFileOptions): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(file, words, { ...options, encoding: 'utf8' }, (error, stdout, stderr) => {
      resolve({ exit: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

function runner(program: string, cwd: string): Run {
  return (...words) => {
    const request = { program, words, cwd };
    if (mayShareProcess(request)) return inKeptProcess(request);
    return outcomeOf(process.execPath, [fileOf(program), ...words], { cwd });
  };
}
