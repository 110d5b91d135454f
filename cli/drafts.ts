/** Making a file that appears under its name only when it is complete: what is told where that fails. */
import path from 'node:path';
import { isPcowError, type Making, PcowError, throughDraft as throughEngineDraft } from '../src/engine/index.js';
import { Failure } from './output/errors.js';
import { explain, systemErrorOf } from './system-errors.js';

/** As the engine's, with the next step in the errors. */
export async function throughDraft<T>(target: string, making: Making, work: (draft: string) => Promise<T>): Promise<T> {
  try {
    return await throughEngineDraft(target, making, async (draft) => {
      try {
        return await work(draft);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        // As the engine does it with messages.
        throw new Failure(error.code, error.message, error.hint?.replaceAll(draft, target));
      }
    });
  } catch (error) {
    throw draftFailure(error, target);
  }
}

/** Where a file can't be made, or replaced: users know it by its own name, not by that of the draft. */
export function draftFailure(error: unknown, target: string): unknown {
  if (error instanceof Failure) return error;
  if (isPcowError(error, 'PCOW_EXISTS')) {
    return new Failure('PCOW_EXISTS', `${target} exists already`, 'choose another name, or replace it with --force');
  }
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (isPcowError(error, 'PCOW_PERMISSION') || code === 'EACCES' || code === 'EPERM') {
    return new Failure(
      'PCOW_PERMISSION',
      `${target} can't be made: its directory may not be written by this user`,
      'choose another directory, or the user who owns it',
    );
  }
  if (error instanceof PcowError) return error;
  return systemFailure(error, target);
}

/** What is about another directory (the stage of a conversion in /tmp) is told as it is. */
function systemFailure(error: unknown, target: string): unknown {
  const known = systemErrorOf(error);
  if (known === null || (known.path !== null && path.dirname(known.path) !== path.dirname(target))) return error;
  const told = explain(Object.assign(new Error(), error, { path: target }));
  return told === null ? error : new Failure(told.code, told.message, told.hint);
}
