/** Commands that take several images: one that fails does not keep the others from being done. */
import { isPcowError } from '../../src/engine/errors.js';
import { report } from './errors.js';

/**
 * Does the same to each, one after another. The failure of an only one is the command's; of several each is told, and the first one's
 * exit code is the command's. What was interrupted ends all. Returns what came of those that did not fail.
 */
export async function forEach<Item, Result>(items: Item[], work: (item: Item) => Promise<Result>): Promise<Result[]> {
  const results: Result[] = [];
  for (const item of items) {
    try {
      results.push(await work(item));
    } catch (error) {
      if (items.length === 1 || isPcowError(error, 'PCOW_CANCELLED')) throw error;
      failWith(report('pcow', error));
    }
  }
  return results;
}

/** Of the exit codes of several the first one is told. */
export function failWith(code: number): void {
  process.exitCode = Number(process.exitCode ?? 0) || code;
}
