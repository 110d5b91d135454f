import type { Command } from 'commander';
import { isPcowError } from '../../src/engine/index.js';
import { runMonitored, runPlain, shellExports } from '../../src/client/monitored-command.js';
import { Failure, warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { put } from '../output/stdout.js';
import { parseCacheSize } from '../../src/images/sizes.js';

interface Options {
  cleanCache?: number;
  log?: string;
  plain?: boolean;
  printEnv?: boolean;
}

export function addRun(program: Command): void {
  const command = program
    .command('run')
    .summary('run a command under the monitor, for example QEMU')
    .description(
      'Runs a command, for example QEMU, under the monitor: shared mappings of flat files become mappings ' +
        'of the images themselves.',
    )
    .argument('[command...]', 'the command and its arguments')
    .option(
      '--clean-cache <size>',
      'memory for copies of data of lower layers; default: a quarter of the memory',
      parseCacheSize,
    )
    .option('--log <file>', 'append the monitor’s log to this file')
    .option('--plain', 'run it without the monitor')
    .option(
      '--print-env',
      'print the environment that enables the monitor, for a shell, and run nothing',
    )
    .usage('[options] -- COMMAND [ARGUMENT...]')
    // Everything after the command belongs to the command.
    .passThroughOptions()
    .action(run);
  addNotes(command, {
    text: [
      'The command replaces pcow (exec): the process, its signals and its exit code are those of the ' +
        'command.',
      'The guest of a monitored QEMU continues when the mount dies, and a snapshot does not stop it. ' +
        'docs/monitor.md describes this, and how libvirt starts QEMU in this way.',
      'The monitor needs the right to userfaultfd. Without this right, the command is run only with ' +
        '--plain.',
    ],
    examples: [
      {
        command: 'pcow run -- qemu-system-x86_64 $(pcow qemu-args /mnt/vm1) …',
        does: 'a guest with live snapshots',
      },
      {
        command: 'eval "$(pcow run --print-env)"',
        does: 'the same for everything that this shell starts from now on',
      },
    ],
  });
}

function run(words: string[], options: Options): void {
  const { cleanCache, log, plain = false, printEnv = false } = options;
  if (plain && (printEnv || cleanCache !== undefined || log !== undefined)) {
    throw new Failure(
      'PCOW_USAGE',
      '--plain runs without the monitor: it cannot be combined with other options',
    );
  }
  if (printEnv) {
    if (words.length > 0) {
      throw new Failure('PCOW_USAGE', '--print-env runs nothing: omit the command');
    }
    put(shellExports({ cleanCache, log }));
    return;
  }
  const [name, ...rest] = words;
  if (name === undefined) {
    throw new Failure('PCOW_USAGE', 'the command to run is missing', 'pcow run --help');
  }
  try {
    if (plain) {
      warn(
        'pcow',
        'without the monitor: a snapshot stops the command, and it does not survive the mount',
      );
      runPlain([name, ...rest]);
    }
    runMonitored([name, ...rest], { cleanCache, log });
  } catch (error) {
    throw isPcowError(error) ? new Failure(error.code, error.message, hintFor(error.code)) : error;
  }
}

function hintFor(code: string): string {
  return code === 'PCOW_NOT_FOUND'
    ? 'check its name, and that PATH has its directory'
    : 'or run it without the monitor: pcow run --plain -- COMMAND';
}
