/**
 * Writes the code cache of the programs' one file, beside it: what V8 has compiled of the file when
 * some commands have run. cli/bundled.cts gives it to V8 again. bundle.ts runs this with
 * --predictable, with which the same file nearly always gives the same cache.
 *
 *   node --predictable dist/scripts/code-cache.js FILE
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import Module from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { Script } from 'node:vm';

import type * as Programs from '../cli/programs.js';

const [file = ''] = process.argv.slice(2);

/** They load what most commands need, and what a mount needs, with their exit codes. */
const COMMANDS: [number, string[]][] = [
  [0, ['help']],
  [0, ['create', 'base', '1M']],
  [0, ['snapshot', 'base@one']],
  [0, ['clone', 'base@one', 'vm']],
  [0, ['info', 'vm']],
  [11, ['mount', '--foreground', '.', 'nowhere']],
];

// As bundled.cts does it.
const script = new Script(Module.wrap(readFileSync(file, 'latin1')), { filename: file });
const programs = { exports: {} as typeof Programs };
const evaluate = script.runInThisContext() as (...values: unknown[]) => void;
evaluate(programs.exports, Module.createRequire(file), programs, file, path.dirname(file));

const scratch = mkdtempSync(path.join(os.tmpdir(), 'pcow-code-cache-'));
process.chdir(scratch);
const wrong: string[] = [];
for (const [exit, words] of COMMANDS) {
  process.argv.splice(1, Infinity, file, ...words);
  process.exitCode = 0;
  await programs.exports.startProgram('pcow');
  if (process.exitCode !== exit) wrong.push(`pcow ${words.join(' ')}: ${process.exitCode}`);
}
rmSync(scratch, { recursive: true });
if (wrong.length === 0) writeFileSync(`${file}.cache`, script.createCachedData());
else process.stderr.write(`unexpected exit codes: ${wrong.join(', ')}\n`);
process.exit(wrong.length);
