/** Filters of system calls (seccomp(2)): of a container, or of a unit's SystemCallFilter. A process that is started under one has it, too. */

/** `status`: the text of a /proc/PID/status. */
export function isFiltered(status: string): boolean {
  return /^Seccomp:\s+[12]$/m.test(status);
}

/** What mends it. */
export const FILTER_MUST_ALLOW =
  'the filter of system calls here, as of a container, must allow userfaultfd, pidfd_open and pidfd_getfd';
