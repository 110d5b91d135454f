/** Commands for several images: if one image fails, the others are still done. */
import { isPcowError } from '../../src/engine/errors.js';
import { report } from './errors.js';

/**
 * Does the same work for each item in turn. If there is one item, its error is the command's. If
 * there are several, each error is printed, and the command ends with the first exit code. An
 * interrupt ends everything. Returns the results of the items that did not fail.
 */
export async function forEach<Item, Result>(
  items: Item[],
  work: (item: Item) => Promise<Result>,
): Promise<Result[]> {
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

/** The first of several exit codes is kept. */
export function failWith(code: number): void {
  process.exitCode = Number(process.exitCode ?? 0) || code;
}
