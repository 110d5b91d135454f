/**
 * Mount namespaces of tests. A new one has all mounts of the machine, also those of tests that run
 * at the same time, and a mount does not end as long as any namespace has it. So a namespace begins
 * with letting go of them. (A user namespace may not do that.)
 */

/** The shell's command for that, except the mount at `kept`. */
export function leaveOtherMounts(kept = ''): string {
  return `awk '$3 == "fuse.pcow" && $2 != "${kept}" { print $2 }' /proc/mounts | xargs -r umount --lazy 2> /dev/null`;
}

/** The words that run a command in a namespace of its own; `options` are those of unshare(1). */
export function inMountNamespace(
  command: string[],
  { kept = '', options = ['--mount'] }: { kept?: string; options?: string[] } = {},
): [string, ...string[]] {
  return [
    'unshare',
    ...options,
    'sh',
    '-c',
    `${leaveOtherMounts(kept)}; exec "$@"`,
    'sh',
    ...command,
  ];
}
