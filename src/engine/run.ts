/**
 * What `pcow run` needs from the addon: replacing this process by another program, and checking
 * whether userfaultfd may be used.
 */
import { translatedNow } from './errors.js';
import { addon } from './native.js';

/**
 * Whether processes under the monitor can share memory. Throws PCOW_PERMISSION with the command
 * that grants the right to be under it, or the error of a kernel or a filter of system calls that
 * does not allow what the monitor needs.
 */
export function checkMonitor(): { canShare: boolean } {
  return translatedNow(() => ({ canShare: addon().checkMonitor() }));
}

/**
 * Replaces this process by a command, which is searched in PATH: from then on, its pid, signals and
 * exit code are the command's own. Returns only by throwing. What Node does when it starts cannot
 * be undone: the command inherits only the three standard descriptors, and signals that were
 * ignored are no longer ignored.
 */
export function become(
  words: readonly [string, ...string[]],
  environment: NodeJS.ProcessEnv,
): never {
  const variables = Object.entries(environment).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  return translatedNow(() => addon().become([...words], variables));
}
