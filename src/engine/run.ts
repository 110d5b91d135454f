/** Becoming another program, and whether that one may serve its own page faults: what `pcow run` needs of the addon. */
import { translatedNow } from './errors.js';
import { addon } from './native.js';

/** Throws PCOW_PERMISSION with the command that grants the right, or what this kernel, or a filter of system calls, keeps from the monitor. */
export function checkMonitor(): void {
  translatedNow(() => {
    addon().checkMonitor();
  });
}

/**
 * Replaces this process by a command, which is looked for in PATH: its pid, its signals and its exit code are the command's
 * own from then on. Returns only by throwing. What Node does as it starts can't be undone: of inherited descriptors the command
 * has the three standard ones only, and signals that were ignored are not ignored any more.
 */
export function become(words: readonly [string, ...string[]], environment: NodeJS.ProcessEnv): never {
  const variables = Object.entries(environment).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  return translatedNow(() => addon().become([...words], variables));
}
