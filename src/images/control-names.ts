/**
 * The names of the control files, which a mount and its clients share. docs/control-files.md
 * describes each.
 */

/** `.pcow/IMAGE/NAME`: the read-only files. */
export type ImageReport = 'status' | 'snapshots' | 'metrics' | 'trace';

/** `.pcow/IMAGE/NAME`: the files that take commands. */
export type ImageControl =
  | 'snapshot'
  | 'rollback'
  | 'rename'
  | 'delete'
  | 'clone'
  | 'remove'
  | 'resize'
  | 'rebase'
  | 'flatten'
  | 'commit'
  | 'compact'
  | 'prefetch'
  | 'checksums'
  | 'cancel';

/** Instead of "now" in `prefetch`, if the image shall keep everything. */
export const WITHOUT_LIMIT = 'without limit';

/** `.pcow/NAME`: an image with such a name has a flat file, but no control files. */
export const MOUNT_CONTROLS = ['help', 'metrics', 'snapshot', 'status'] as const;

export type MountControl = (typeof MOUNT_CONTROLS)[number];
