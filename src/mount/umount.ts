/** Ending a mount from another process. */
import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { lockDirectory } from '../engine/directory-lock.js';
import { isPcowError } from '../engine/index.js';
import { MOUNT_TYPE, mountTable } from '../mounts.js';
import { unmountFailure } from './mount.js';
import { clearDeadMount, mountError, placeOf } from './mountpoint.js';

const run = promisify(execFile);

/** Milliseconds between looks at whether the mount's process has ended. */
const PAUSE = 20;

/**
 * Ends the mount on a mountpoint. Resolves when its last sync is done and every image is closed; rejects with EBUSY, and the mount goes
 * on, where somebody uses it. Clears a dead mount away.
 */
export async function umount(mountpoint: string): Promise<void> {
  if (await clearDeadMount(mountpoint)) {
    return;
  }
  const place = await placeOf(mountpoint);
  const mount = (await mountTable()).findLast((entry) => entry.mountpoint === place);
  if (mount?.type !== MOUNT_TYPE) {
    throw mountError(
      `no image directory is mounted on ${mountpoint}: "pcow list DIR" says where DIR is mounted`,
      undefined,
      'EINVAL',
    );
  }
  try {
    await run('fusermount3', ['-u', '--', place]);
  } catch (cause) {
    throw await unmountFailure(place, cause);
  }
  await lockFree(mount.source);
}

/** The mount's process holds the lock of its directory until all is done, or it dies. */
async function lockFree(directory: string): Promise<void> {
  for (;;) {
    try {
      lockDirectory(directory).release();
      return;
    } catch (error) {
      if (!isPcowError(error, 'PCOW_LOCKED')) {
        return; // the directory is gone, or not ours to look at
      }
      await sleep(PAUSE);
    }
  }
}
