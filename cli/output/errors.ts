/**
 * How failures reach people: one line that says what happened, to which image, one line with the next step, and an
 * exit code of `exit-codes.ts`. Nothing else in the CLI writes errors.
 */
import createDebug from 'debug';
import { PcowError, type PcowErrorCode } from '../../src/engine/errors.js';
import { err } from './colors.js';
import { exitCodeOf } from './exit-codes.js';
import { inThisLocale } from './locale.js';
import { adviceOn, CHANGE_DIRECTORY, explain, workingDirectoryIsGone } from '../../src/engine/system-errors.js';

const debug = createDebug('pcow:cli');

/** A failure that the CLI itself found, with the next step where the general one would not fit. */
export class Failure extends PcowError {
  constructor(code: PcowErrorCode, message: string, hint?: string | null) {
    super(code, message, { next: hint });
  }

  get hint(): string | null | undefined {
    return this.next;
  }
}

/** Does work whose errors of these codes have another cause than usual, and so another next step. */
export async function advising<T>(
  steps: Partial<Record<PcowErrorCode, string | null>>,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const step = error instanceof PcowError && error.next === undefined ? steps[error.code] : undefined;
    throw step === undefined || !(error instanceof PcowError) ? error : new Failure(error.code, error.message, step);
  }
}

/** The next step after an error of the engine or of the mount: what is right whatever has led to that code. Else it comes with the error. */
const NEXT_STEPS: Partial<Record<PcowErrorCode, string>> = {
  PCOW_USAGE: 'see “pcow help COMMAND”',
  PCOW_EXISTS: 'choose another name',
  PCOW_NOT_FOUND: '“pcow list” shows the images of a directory and the snapshots of an image',
  PCOW_LOCKED: 'let that process end first; an image in a mount is changed through the mount',
  PCOW_IN_USE: 'make those images stand on their own (pcow flatten), or delete them first (pcow rm)',
  PCOW_NOT_AN_IMAGE: '“pcow convert FILE NEW” makes an image of a file of another format',
  PCOW_CORRUPT: '“pcow check” tells what is damaged, and “pcow check --repair” mends what can be mended',
  PCOW_NO_SPACE: 'free space on the file system of the image, then try again',
  PCOW_PERMISSION: 'use the user who owns the image and its directory',
  PCOW_READ_ONLY: 'mount it for writing, or work on a copy',
  PCOW_BASE_MISSING: 'put the base back, or say where it is now: pcow rebase IMAGE --unsafe --base BASE',
  PCOW_BASE_CHANGED: 'put the original base back, or take what is there now: pcow rebase IMAGE --unsafe --base BASE',
  PCOW_BASE_OUTSIDE: 'move the base into the image directory, or mount with --allow-outside-base',
};

/** Writes an error for people to stderr and returns the exit code. `program` begins the line. */
export function report(program: string, error: unknown): number {
  const { code, message, hint } = explained(error);
  debug('%s: %s', code ?? 'unexpected', error instanceof Error ? error.stack : error);
  process.stderr.write(`${err.red(`${program}:`)} ${inThisLocale(message)}\n`);
  if (hint !== undefined) {
    process.stderr.write(`${' '.repeat(program.length + 2)}${err.dim(inThisLocale(hint))}\n`);
  }
  return exitCodeOf(code);
}

/** Any error as a sentence, with the next step, and a code; null: a fault of Pcow itself. */
export function explained(error: unknown): { code: PcowErrorCode | null; message: string; hint: string | undefined } {
  if (error instanceof PcowError) {
    const { code, message } = error;
    const lost = error.errnoName === 'ENOENT' && workingDirectoryIsGone();
    return { code, message, hint: lost ? `the working directory was removed: ${CHANGE_DIRECTORY}` : nextStepOf(error) };
  }
  const system = explain(error);
  if (system !== null) return { ...system, hint: system.hint ?? NEXT_STEPS[system.code] };
  return {
    code: null,
    message: `unexpected failure: ${error instanceof Error ? error.message : String(error)}`,
    hint: 'this is a fault of Pcow: with DEBUG=pcow:* it tells where, which belongs into a report',
  };
}

/** What ran out, and not what was done then, tells the next step. */
const WHATEVER_FAILED = ['EMFILE', 'ENFILE', 'ENOMEM', 'EDQUOT'];

function nextStepOf({ code, errnoName, next }: PcowError): string | undefined {
  if (next !== undefined) return next ?? undefined;
  const general = NEXT_STEPS[code];
  // A base that may not be read, or that there is no descriptor for, is where it belongs.
  const cause = code === 'PCOW_BASE_MISSING' ? errnoName !== 'ENOENT' : WHATEVER_FAILED.includes(errnoName);
  return (cause ? adviceOn(errnoName) : undefined) ?? general;
}

/** A line for people on stderr that is no failure: the command goes on. */
export function warn(program: string, message: string): void {
  process.stderr.write(`${err.yellow(`${program}: warning:`)} ${inThisLocale(message)}\n`);
}
