/**
 * Filters of system calls (seccomp(2)): of a container, or of a unit's SystemCallFilter. Processes
 * that are started under a filter inherit it.
 */

/** `status`: the text of a /proc/PID/status. */
export function isFiltered(status: string): boolean {
  return /^Seccomp:\s+[12]$/m.test(status);
}

/** The fix. */
export const FILTER_MUST_ALLOW =
  'the filter of system calls here, as of a container, must allow userfaultfd, pidfd_open and pidfd_getfd';
