/** Checks an image without opening it, and repairs it: docs/check.md. */
import { runLong } from './long.js';
import { addon } from './native.js';
import type { CheckReport, LongOptions } from './types.js';
import { checkFlag, checkOptions, checkPath } from './validate.js';

/**
 * Verifies the structure of an image, even of one that cannot be opened, at rest or in use. The
 * report contains the findings; the call fails only if the check cannot be completed. It writes
 * only with `repair`, which requires that no process has the image open for writing (PCOW_LOCKED).
 * A repair fixes what can be fixed without guessing, and keeps data that it cannot assign in
 * IMAGE.lost.
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
