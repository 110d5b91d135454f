import type { Command } from 'commander';
import { exitCodes } from '../output/exit-codes.js';
import { addNotes } from '../output/help.js';
import { say } from '../output/stdout.js';

/** `pcow help exit-codes` and `pcow exit-codes` show the same table. */
export function addExitCodes(program: Command): void {
  const command = program
    .command('exit-codes')
    .summary('what the exit codes mean')
    .description(`The exit codes of pcow and pcow-img:\n\n${exitCodeTable()}`)
    .action(() => {
      say(exitCodeTable());
    });
  addNotes(command, {
    examples: [
      { command: 'pcow exit-codes', does: 'shows this table' },
      { command: 'pcow info vm1 || echo $?', does: 'shows the exit code of a failure' },
    ],
  });
}

export function exitCodeTable(): string {
  return exitCodes
    .map(({ exit, meaning }) => `  ${String(exit).padStart(3)}  ${meaning}`)
    .join('\n');
}
