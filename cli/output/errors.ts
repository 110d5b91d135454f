/**
 * How errors are printed: one line that says what happened, to which image, one line with the next
 * step, and an exit code of `exit-codes.ts`. Nothing else in the CLI prints errors.
 */
import createDebug from 'debug';
import { PcowError, type PcowErrorCode } from '../../src/engine/errors.js';
import { err } from './colors.js';
import { exitCodeOf } from './exit-codes.js';
import { inThisLocale } from './locale.js';
import {
  adviceOn,
  CHANGE_DIRECTORY,
  explain,
  workingDirectoryIsGone,
} from '../../src/engine/system-errors.js';

const debug = createDebug('pcow:cli');

/** An error that the CLI itself found, with its own next step if the general one would not fit. */
export class Failure extends PcowError {
  constructor(code: PcowErrorCode, message: string, hint?: string | null) {
    super(code, message, { next: hint });
  }

  get hint(): string | null | undefined {
    return this.next;
  }
}

/** Runs work in which errors with these codes have an unusual cause, and so another next step. */
export async function advising<T>(
  steps: Partial<Record<PcowErrorCode, string | null>>,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const step =
      error instanceof PcowError && error.next === undefined ? steps[error.code] : undefined;
    throw step === undefined || !(error instanceof PcowError)
      ? error
      : new Failure(error.code, error.message, step);
  }
}

/**
 * The next step after an error of the engine or of the mount, if it is right for every cause of
 * that code. Otherwise the error has its own.
 */
const NEXT_STEPS: Partial<Record<PcowErrorCode, string>> = {
  PCOW_USAGE: 'see “pcow help COMMAND”',
  PCOW_EXISTS: 'choose another name',
  PCOW_NOT_FOUND: '“pcow list” shows the images of a directory and the snapshots of an image',
  PCOW_LOCKED: 'end that process first; to change an image in a mount, use the mount',
  PCOW_IN_USE:
    'make those images stand on their own (pcow flatten), or delete them first (pcow rm)',
  PCOW_NOT_AN_IMAGE: '“pcow convert FILE NEW” makes an image from a file in another format',
  PCOW_CORRUPT:
    '“pcow check” shows what is damaged, and “pcow check --repair” repairs what can be repaired',
  PCOW_NO_SPACE: 'free space on the filesystem of the image, then try again',
  PCOW_PERMISSION: 'run the command as the user who owns the image and its directory',
  PCOW_READ_ONLY: 'mount it for writing, or work on a copy',
  PCOW_REMOTE: 'fetch it first: pcow prefetch IMAGE',
  PCOW_BASE_MISSING:
    'put the base back, or give its new path: pcow rebase IMAGE --unsafe --base BASE',
  PCOW_BASE_CHANGED:
    'put the original base back, or use the present file: pcow rebase IMAGE --unsafe --base BASE',
  PCOW_BASE_OUTSIDE: 'move the base into the image directory, or mount with --allow-outside-base',
};

/** Prints an error to stderr and returns the exit code. `program` begins the line. */
export function report(program: string, error: unknown): number {
  const { code, message, hint } = explained(error);
  debug('%s: %s', code ?? 'unexpected', error instanceof Error ? error.stack : error);
  process.stderr.write(`${err.red(`${program}:`)} ${inThisLocale(message)}\n`);
  if (hint !== undefined) {
    process.stderr.write(`${' '.repeat(program.length + 2)}${err.dim(inThisLocale(hint))}\n`);
  }
  return exitCodeOf(code);
}

/** An error as a sentence, with the next step, and a code; null: a fault in Pcow itself. */
export function explained(error: unknown): {
  code: PcowErrorCode | null;
  message: string;
  hint: string | undefined;
} {
  if (error instanceof PcowError) {
    const { code, message } = error;
    const lost = error.errnoName === 'ENOENT' && workingDirectoryIsGone();
    return {
      code,
      message,
      hint: lost ? `the working directory was removed: ${CHANGE_DIRECTORY}` : nextStepOf(error),
    };
  }
  const system = explain(error);
  if (system !== null) return { ...system, hint: system.hint ?? NEXT_STEPS[system.code] };
  return {
    code: null,
    message: `unexpected failure: ${error instanceof Error ? error.message : String(error)}`,
    hint: 'this is a fault in Pcow: report it with the output of DEBUG=pcow:*',
  };
}

/** For these errnos the resource that ran out decides the next step, not the operation. */
const WHATEVER_FAILED = ['EMFILE', 'ENFILE', 'ENOMEM', 'EDQUOT'];

function nextStepOf({ code, errnoName, next }: PcowError): string | undefined {
  if (next !== undefined) return next ?? undefined;
  const general = NEXT_STEPS[code];
  // A base that may not be read, or for which there is no descriptor, need not be put back.
  const cause =
    code === 'PCOW_BASE_MISSING' ? errnoName !== 'ENOENT' : WHATEVER_FAILED.includes(errnoName);
  return (cause ? adviceOn(errnoName) : undefined) ?? general;
}

/** Prints a warning to stderr: the command continues. */
export function warn(program: string, message: string): void {
  process.stderr.write(`${err.yellow(`${program}: warning:`)} ${inThisLocale(message)}\n`);
}
