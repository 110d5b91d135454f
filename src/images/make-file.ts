/** Making a file that appears under its name only when it is complete: what is told where that fails. */
import path from 'node:path';
import { isPcowError, type Making, PcowError, throughDraft as throughEngineDraft } from '../engine/index.js';
import { explain, systemErrorOf } from '../engine/system-errors.js';

/** As the engine's, with the next step in the errors. What `work` fails with has its own sentence, and is told as it is. */
export async function throughDraft<T>(target: string, making: Making, work: (draft: string) => Promise<T>): Promise<T> {
  let ofWork: unknown;
  try {
    return await throughEngineDraft(target, making, async (draft) => {
      try {
        return await work(draft);
      } catch (error) {
        throw (ofWork = withoutDraft(error, draft, target));
      }
    });
  } catch (error) {
    if (error === ofWork) throw error instanceof PcowError ? error : systemFailure(error, target);
    throw draftFailure(error, target);
  }
}

/** As the engine does it with messages. */
function withoutDraft(error: unknown, draft: string, target: string): unknown {
  if (!(error instanceof PcowError) || error.next?.includes(draft) !== true) return error;
  const { code, message, errno, next } = error;
  return new PcowError(code, message, { errno, cause: error, next: next.replaceAll(draft, target) });
}

/** Where a file can't be made, or replaced: users know it by its own name, not by that of the draft. */
function draftFailure(error: unknown, target: string): unknown {
  if (isPcowError(error, 'PCOW_EXISTS')) {
    return new PcowError('PCOW_EXISTS', `${target} exists already`, {
      next: 'choose another name, or replace it with --force',
    });
  }
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (isPcowError(error, 'PCOW_PERMISSION') || code === 'EACCES' || code === 'EPERM') {
    return new PcowError('PCOW_PERMISSION', `${target} can't be made: its directory may not be written by this user`, {
      next: 'choose another directory, or the user who owns it',
    });
  }
  return error instanceof PcowError ? error : systemFailure(error, target);
}

/** What is about another directory (the stage of a conversion in /tmp) is told as it is. */
function systemFailure(error: unknown, target: string): unknown {
  const known = systemErrorOf(error);
  if (known === null || (known.path !== null && path.dirname(known.path) !== path.dirname(target))) return error;
  const told = explain(Object.assign(new Error(), error, { path: target }));
  return told === null ? error : new PcowError(told.code, told.message, { next: told.hint });
}
