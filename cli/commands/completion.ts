import { Argument, type Command } from 'commander';
import type { Completion } from '../completion/candidates.js';
import { answerLines, completionScript, SHELLS, type Shell } from '../completion/scripts.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { put, say } from '../output/stdout.js';

/** Used instead of a shell's name by the scripts. */
const QUESTION = 'words';

export function addCompletion(program: Command): void {
  const command = program
    .command('completion')
    .summary('print the completion of commands, options and images for a shell')
    .description(
      'Prints a script with which a shell completes commands, options, images and snapshots.',
    )
    .addArgument(
      new Argument('<shell>', 'the shell; “words” is what its script calls').choices([
        ...SHELLS,
        QUESTION,
      ]),
    )
    .argument(
      '[words...]',
      'after “words --”: the command line so far, with its last word unfinished',
    )
    .action(async (shell: Shell | typeof QUESTION, words: string[]) => {
      if (shell === QUESTION) {
        put(
          answerLines(await candidatesFor(words))
            .map((line) => `${line}\n`)
            .join(''),
        );
        return;
      }
      if (words.length > 0) {
        throw new Failure('PCOW_USAGE', `the script for ${shell} takes no more arguments`);
      }
      say(completionScript(program.name(), shell).trimEnd());
    });
  addNotes(command, {
    text: ['The Debian package installs all three.'],
    examples: [
      { command: 'source <(pcow completion bash)', does: 'for this bash; zsh too, with “zsh”' },
      {
        command: 'pcow completion fish > ~/.config/fish/completions/pcow.fish',
        does: 'for every fish',
      },
    ],
  });
}

/** Runs at each press of the completion key, so only what the command line needs is loaded. */
async function candidatesFor(words: string[]): Promise<Completion> {
  const [{ complete }, { pcowProgram }] = await Promise.all([
    import('../completion/candidates.js'),
    import('../pcow-program.js'),
  ]);
  return complete(await pcowProgram(words.slice(0, -1)[0]), words);
}
