/** Making a file that appears under its name only when it is complete: what is told where that fails. */
import { isPcowError, type Making, throughDraft as throughEngineDraft } from '../src/engine/index.js';
import { Failure } from './errors.js';

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

/** Where a file can't be made, or replaced. */
export function draftFailure(error: unknown, target: string): unknown {
  if (isPcowError(error, 'PCOW_EXISTS') && !(error instanceof Failure)) {
    return new Failure('PCOW_EXISTS', `${target} exists already`, 'choose another name, or replace it with --force');
  }
  switch (codeOf(error)) {
    case 'PCOW_PERMISSION':
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new Failure(
        'PCOW_PERMISSION',
        `${target} can't be made: its directory may not be written by this user`,
        'choose another directory, or the user who owns it',
      );
    case 'ENOSPC':
      return new Failure(
        'PCOW_NO_SPACE',
        `${target}: no space left on its file system`,
        'free space there, or choose another directory',
      );
    default:
      return error;
  }
}

function codeOf(error: unknown): unknown {
  return error instanceof Error && 'code' in error ? error.code : undefined;
}
