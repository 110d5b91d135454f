/**
 * The start of each program. Everything else is loaded from here, so that an error during loading
 * (no more descriptors, a missing file of Pcow) is printed like any other. Of Pcow's own modules,
 * this file needs only the few of errors.ts.
 */
import type { Command } from 'commander';
import { Failure, report } from './output/errors.js';
import { explain } from '../src/engine/system-errors.js';

/** `load` imports the program of this name, as far as these arguments need it. */
export async function start(
  name: string,
  load: (args: string[]) => Promise<Command>,
): Promise<void> {
  const args = process.argv.slice(2);
  try {
    const program = await load(args);
    const { run } = await import('./run-program.js');
    process.exitCode = await run(program, args);
    const { hasQuestionsLeft } = await import('../src/images/mount-life.js');
    if (hasQuestionsLeft()) process.exit();
  } catch (error) {
    process.exitCode = report(name, loadingFailure(error));
  }
}

function loadingFailure(error: unknown): unknown {
  const known = explain(error);
  return known === null
    ? error
    : new Failure(known.code, `Pcow can't be loaded: ${known.message}`, known.hint);
}
