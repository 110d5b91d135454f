/**
 * Shared by both programs: a commander program whose errors all go through errors.ts, and its run.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Command, CommanderError } from 'commander';
import { ROOT } from '../src/engine/built.js';
import { askMountsOf } from './mounts-must-answer.js';
import { Failure, report } from './output/errors.js';
import { commandInstead, optionInstead, withSmallerSize } from './words-of-other-programs.js';
import { locatingRemote } from './output/remote.js';
import { inThisLocale } from './output/locale.js';
import { outputWritten, put, ReaderGone, watchOutput } from './output/stdout.js';
import { quote } from '../src/engine/quote.js';

const { version } = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
  version: string;
};

/** An empty program. Commands that are added with `program.command()` inherit its settings. */
export function newProgram(name: string): Command {
  return new Command(name)
    .version(version)
    .helpCommand('help [command]', 'show the help of a command')
    .configureOutput({
      outputError: () => undefined,
      writeOut: (text) => put(inThisLocale(text)),
      writeErr: (text) => process.stderr.write(inThisLocale(text)),
    })
    .configureHelp({ showGlobalOptions: false })
    .hook('preAction', (_program, command) => askMountsOf(command))
    .exitOverride();
}

/** Runs the program with these arguments (without node and the script); returns the exit code. */
export async function run(program: Command, args: string[]): Promise<number> {
  watchOutput();
  // An error of stderr cannot be printed anywhere; the exit code also shows the failure.
  process.stderr.on('error', () => undefined);
  reportWhatNobodyCatches(program.name());
  try {
    await program.parseAsync(withSmallerSize(withoutHelpOfUnknown(program, args)), {
      from: 'user',
    });
    await outputWritten();
    return exitCodeSoFar();
  } catch (error) {
    if (error instanceof ReaderGone) return exitCodeSoFar();
    if (error instanceof CommanderError) {
      return error.exitCode === 0 ? 0 : report(program.name(), usageFailure(program, error));
    }
    return report(program.name(), await locatingRemote(error));
  }
}

function exitCodeSoFar(): number {
  return Number(process.exitCode ?? 0);
}

/**
 * Prints an error that no command handles like any other. A mount in the foreground continues: it
 * has its own listeners.
 */
function reportWhatNobodyCatches(program: string): void {
  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error: unknown) => {
      if (process.listenerCount(event) === 1) process.exit(report(program, error));
    });
  }
}

/**
 * “help NAME” for an unknown command is answered like NAME itself: with the command that may be
 * meant.
 */
function withoutHelpOfUnknown(program: Command, args: string[]): string[] {
  const [help, name] = args;
  const vain =
    help === 'help' &&
    name !== undefined &&
    !program.commands.some((known) => known.name() === name);
  return vain && name !== 'help' ? [name] : args;
}

function usageFailure(program: Command, error: CommanderError): Failure {
  const [command] = program.args;
  const known = program.commands.find((candidate) => candidate.name() === command);
  const name = program.name();
  const help =
    known === undefined
      ? `${name} --help`
      : `${name} ${known.name()} ${known.usage()} (more: ${name} ${known.name()} --help)`;
  if (error.code === 'commander.help') {
    // The help itself was printed to stderr already.
    return new Failure('PCOW_USAGE', 'a command is missing', help);
  }
  const negative = /unknown option '(-\d[^']*)'/.exec(error.message)?.[1];
  if (negative !== undefined) {
    return new Failure('PCOW_INVALID', `the size ${negative} is negative`, help);
  }
  const message = error.message.replace(/^error: /, '').replaceAll('\n', ' ');
  const [, what, word = ''] = /^unknown (command|option) '([^']*)'/.exec(message) ?? [];
  const instead =
    what === 'command'
      ? commandInstead(word)
      : what === 'option'
        ? optionInstead(command ?? '', word)
        : undefined;
  return instead === undefined || name !== 'pcow'
    ? new Failure('PCOW_USAGE', message, help)
    : new Failure('PCOW_USAGE', `unknown ${what ?? ''} ${quote(word)}`, instead);
}
