/** Makes a file that gets its name only when it is complete, and explains the errors. */
import path from 'node:path';
import {
  isPcowError,
  type Making,
  PcowError,
  throughDraft as throughEngineDraft,
} from '../engine/index.js';
import { explain, systemErrorOf } from '../engine/system-errors.js';

/**
 * As the engine's function, and adds the next step to errors. An error of `work` has its own
 * sentence, and is not changed.
 */
export async function throughDraft<T>(
  target: string,
  making: Making,
  work: (draft: string) => Promise<T>,
): Promise<T> {
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

/** The engine does the same in messages. */
function withoutDraft(error: unknown, draft: string, target: string): unknown {
  if (!(error instanceof PcowError) || error.next?.includes(draft) !== true) return error;
  const { code, message, errno, next } = error;
  return new PcowError(code, message, {
    errno,
    cause: error,
    next: next.replaceAll(draft, target),
  });
}

/**
 * Explains why a file can't be made or replaced. Users know the file by its own name, not by the
 * draft's.
 */
function draftFailure(error: unknown, target: string): unknown {
  if (isPcowError(error, 'PCOW_EXISTS')) {
    return new PcowError('PCOW_EXISTS', `${target} exists already`, {
      next: 'choose another name, or replace it with --force',
    });
  }
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (isPcowError(error, 'PCOW_PERMISSION') || code === 'EACCES' || code === 'EPERM') {
    return new PcowError(
      'PCOW_PERMISSION',
      `${target} can't be made: this user may not write to its directory`,
      {
        next: 'choose another directory, or run as its owner',
      },
    );
  }
  return error instanceof PcowError ? error : systemFailure(error, target);
}

/** Errors about another directory (the temporary file of a conversion in /tmp) are not changed. */
function systemFailure(error: unknown, target: string): unknown {
  const known = systemErrorOf(error);
  if (known === null || (known.path !== null && path.dirname(known.path) !== path.dirname(target)))
    return error;
  const told = explain(Object.assign(new Error(), error, { path: target }));
  return told === null ? error : new PcowError(told.code, told.message, { next: told.hint });
}
