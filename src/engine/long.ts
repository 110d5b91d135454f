/** Runs long operations of the addon: cancellation and progress. */
import { PcowError, translated } from './errors.js';
import { addon, type NativeCancellation } from './native.js';
import type { LongOptions } from './types.js';
import { checkOptions, checkSignal } from './validate.js';

export type LongWork<T> = (
  cancellation: NativeCancellation,
  report: ((done: number, total: number) => void) | null,
) => Promise<T>;

/**
 * `method` and `what` name the work in messages, for example `Image.delete` and `vm1.pcow: the
 * deletion of s1`.
 */
export async function runLong<T>(
  method: string,
  what: () => string,
  options: LongOptions,
  work: LongWork<T>,
): Promise<T> {
  checkOptions(`the options of ${method}`, options, ['signal', 'onProgress']);
  const { signal, onProgress } = options;
  checkSignal(signal);
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new PcowError('PCOW_INVALID', 'the option "onProgress" must be a function');
  }
  if (signal?.aborted) {
    throw new PcowError('PCOW_CANCELLED', `${what()} was stopped before it began`, {
      cause: signal.reason,
    });
  }
  const cancellation = new (addon().Cancellation)();
  const cancel = () => {
    cancellation.cancel();
  };
  // An onProgress that throws stops the operation, which then fails with the thrown value.
  let thrown: { error: unknown } | undefined;
  const report = onProgress
    ? (done: number, total: number) => {
        try {
          if (!thrown) onProgress(done, total);
        } catch (error) {
          thrown = { error };
          cancel();
        }
      }
    : null;
  signal?.addEventListener('abort', cancel, { once: true });
  let result: T;
  try {
    result = await translated(() => work(cancellation, report));
  } catch (error) {
    if (signal?.aborted && error instanceof PcowError && error.code === 'PCOW_CANCELLED') {
      throw new PcowError(error.code, error.message, { errno: error.errno, cause: signal.reason });
    }
    throw thrown ? thrown.error : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
  if (thrown) throw thrown.error;
  return result;
}
