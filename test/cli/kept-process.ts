/**
 * A process that runs one command after another (kept-processes.ts). For each the programs' one
 * file is evaluated anew, so that a command finds everything as in a process of its own; what Node
 * keeps for the whole process is put back by hand. Standard output and standard error are files.
 */
import { fstatSync, ftruncateSync, readFileSync, readSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Script } from 'node:vm';
import type { Outcome } from './outcome.js';

export interface Request {
  program: string;
  words: string[];
  cwd: string;
}

export interface Answer {
  outcome: Outcome;
  /** False where the command has ended its process, because something in it continues. */
  stays: boolean;
}

type Evaluate = (
  exports: object,
  require: NodeJS.Require,
  module: object,
  file: string,
  directory: string,
) => void;

const PROGRAMS = fileURLToPath(new URL('../../cli/bundle/programs.cjs', import.meta.url));
const STDOUT = 1;
const STDERR = 2;

const evaluate = new Script(
  `(function (exports, require, module, __filename, __dirname) {${readFileSync(PROGRAMS, 'utf8')}\n})`,
  {
    filename: PROGRAMS,
  },
).runInThisContext() as Evaluate;
const require = createRequire(PROGRAMS);
const exit = process.exit.bind(process);
const dlopen = process.dlopen.bind(process);
const listened = ['uncaughtException', 'unhandledRejection', 'SIGINT', 'SIGTERM'] as const;

// The addon is loaded once.
const addons = new Map<string, unknown>();
process.dlopen = (module: { exports: unknown }, file: string, flags?: number) => {
  if (!addons.has(file)) {
    dlopen(module, file, flags);
    addons.set(file, module.exports);
  }
  module.exports = addons.get(file);
};

async function run({ program, words, cwd }: Request): Promise<Answer> {
  const module: { exports: { startProgram?: (name: string) => Promise<void> } } = { exports: {} };
  for (const file of [STDOUT, STDERR]) ftruncateSync(file, 0);
  process.chdir(cwd);
  process.argv = [process.execPath, path.join(path.dirname(PROGRAMS), program), ...words];
  process.exitCode = undefined;
  const exits = new Promise<boolean>((resolve) => {
    process.exit = ((code?: number) => {
      process.exitCode = code ?? process.exitCode;
      resolve(false);
    }) as typeof process.exit;
  });
  evaluate(module.exports, require, module, PROGRAMS, path.dirname(PROGRAMS));
  const stays = await Promise.race([exits, module.exports.startProgram!(program).then(() => true)]);
  for (const event of listened) process.removeAllListeners(event);
  for (const stream of [process.stdout, process.stderr]) stream.removeAllListeners('error');
  process.chdir('/');
  const exitCode = Number(process.exitCode ?? 0);
  return {
    outcome: { exit: exitCode, stdout: contentOf(STDOUT), stderr: contentOf(STDERR) },
    stays,
  };
}

function contentOf(file: number): string {
  const bytes = Buffer.alloc(fstatSync(file).size);
  for (let done = 0; done < bytes.length;)
    done += readSync(file, bytes, done, bytes.length - done, done);
  return bytes.toString();
}

process.on('disconnect', () => exit(0));
process.on('message', (request: Request) => {
  void run(request).then((answer) => {
    process.send?.(answer, () => {
      if (!answer.stays) exit(0);
    });
  });
});
