/**
 * A process that runs many command lines in turn and reports their results: starting a process for
 * each would take most of the time.
 */
import { explained } from '../../cli/output/errors.js';
import { exitCodeOf } from '../../cli/output/exit-codes.js';
import { pcowProgram } from '../../cli/pcow-program.js';

/** The result of one: its exit code and its standard error. */
export interface Told {
  words: string[];
  exit: number;
  said: string;
}

async function told(words: string[]): Promise<Told> {
  process.exitCode = undefined;
  try {
    const program = await pcowProgram();
    await program.parseAsync(words, { from: 'user' });
    return { words, exit: Number(process.exitCode ?? 0), said: '' };
  } catch (error) {
    const { code, message, hint } = explained(error);
    return { words, exit: exitCodeOf(code), said: `${message}\n${hint ?? ''}` };
  }
}

process.on('message', (lines: string[][]) => {
  void (async () => {
    for (const words of lines) process.send?.(await told(words));
    process.exit(0);
  })();
});
