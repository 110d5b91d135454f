/** Looking an image over without opening it, and mending it: docs/check.md. */
import { runLong } from './long.js';
import { addon } from './native.js';
import type { CheckReport, LongOptions } from './types.js';
import { checkFlag, checkOptions, checkPath } from './validate.js';

/**
 * Verifies the structure of an image, also of one that can't be opened, at rest or in use. What it finds is in the report; it
 * fails only where it can't be completed. It writes nothing but with `repair`, for which it wants to be the one writer
 * (PCOW_LOCKED): then it mends what can be mended without guessing, and keeps what it can't place in IMAGE.lost.
 */
export async function checkImage(
  path: string,
  options: LongOptions & { repair?: boolean | undefined } = {},
): Promise<CheckReport> {
  checkPath('the path of the image', path);
  checkOptions('the options of checkImage', options, ['repair', 'signal', 'onProgress']);
  const { repair, ...long } = options;
  checkFlag('the option "repair"', repair);
  return runLong(
    'checkImage',
    () => `the check of ${path}`,
    long,
    (cancellation, report) => addon().check(path, repair ?? false, cancellation, report),
  );
}
