/** Running the programs as a user does, with all that comes of it. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';

export interface Outcome {
  exit: number;
  stdout: string;
  stderr: string;
}

export type Run = (...words: string[]) => Promise<Outcome>;

/** `pcow` in a working directory. */
export function pcowIn(directory: string): Run {
  return (...words) => outcomeOf('pcow', directory, words);
}

/** `pcow-img` in a working directory. */
export function pcowImgIn(directory: string): Run {
  return (...words) => outcomeOf('pcow-img', directory, words);
}

/** `mount.fuse.pcow` in a working directory. */
export function mountHelperIn(directory: string): Run {
  return (...words) => outcomeOf('mount-fuse-pcow', directory, words);
}

/** What a command that must succeed prints. */
export async function succeeds(t: ExecutionContext<unknown>, outcome: Promise<Outcome>): Promise<string> {
  const { exit, stdout, stderr } = await outcome;
  t.is(exit, 0, stderr);
  return stdout;
}

/** A command that must fail: with this exit code, saying this (the sentence and the next step), and nothing on stdout. */
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

function outcomeOf(program: string, cwd: string, words: string[]): Promise<Outcome> {
  const file = fileURLToPath(new URL(`../../cli/${program}.js`, import.meta.url));
  return new Promise((resolve) => {
    execFile(process.execPath, [file, ...words], { cwd }, (error, stdout, stderr) => {
      resolve({ exit: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}
