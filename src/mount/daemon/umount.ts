/** Ends a mount from another process. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { lockDirectory } from '../../engine/directory-lock.js';
import { isPcowError } from '../../engine/index.js';
import { usersBelow } from '../../engine/processes.js';
import { mountOnTheWay, stateOfServer, withMount } from '../../images/mount-life.js';
import {
  MOUNT_TYPE,
  mountTable,
  type MountTableEntry,
  type OtherMountpoint,
  mountpointsOfDevice,
} from '../../images/mount-table.js';
import { word } from '../../engine/quote.js';
import type { UsingProcess } from '../control/status.js';
import { clearDeadMount, inUse, mountError, placeOf, silent, unmount } from './mountpoint.js';

/** Milliseconds between checks whether the mount's process has ended. */
const PAUSE = 20;

/** After this many checks a process with an attached image counts as alive. */
const LOOKS_FOR_GUESTS = 25;

/**
 * After every this many checks, look whether the filesystem is mounted elsewhere: then it does not
 * end.
 */
const LOOKS_BEFORE_ASKING = 100;

/**
 * After every this many checks, look whether the mount's process is stopped. (A last sync may take
 * long.)
 */
const LOOKS_BEFORE_GIVING_UP = 150;

/**
 * Ends the mount on a mountpoint. Resolves when its last sync is done and every image is closed.
 * Rejects with EBUSY if it is in use, and the mount continues; or if it is also mounted elsewhere.
 * Removes a dead mount.
 */
export async function umount(mountpoint: string): Promise<void> {
  if (await clearDeadMount(mountpoint)) {
    return;
  }
  const { mountpoint: place, source, device } = await mountOn(mountpoint);
  await notBelowGuests(place);
  const { pid: server } = await stateOfServer(source);
  await unmount(place);
  await ended(source, device, server);
}

/**
 * Rejects with EBUSY if umount() would now, because the mount is in use. Changes nothing, except
 * that it removes a dead mount. Only umount() itself finds a loop device, a process that this user
 * cannot see, and a mount namespace that would keep the mount.
 */
export async function checkUnused(mountpoint: string): Promise<void> {
  if (await clearDeadMount(mountpoint)) return;
  const { mountpoint: place, device } = await mountOn(mountpoint);
  await notBelowGuests(place);
  const users = await usersBelow(place);
  if (users.length > 0) throw inUse(place, users);
  const elsewhere = (await mountpointsOfDevice(device)).filter(
    (it) => it.pid === null && it.mountpoint !== place,
  );
  if (elsewhere.length > 0) throw mountedElsewhere(place, elsewhere);
}

async function mountOn(mountpoint: string): Promise<MountTableEntry> {
  const place = await placeOf(mountpoint);
  const mount = (await mountTable()).findLast((entry) => entry.mountpoint === place);
  if (mount?.type === MOUNT_TYPE) return mount;
  throw mountError(
    `no image directory is mounted on ${mountpoint}: "pcow list DIR" shows where DIR is mounted`,
    undefined,
    'EINVAL',
  );
}

/**
 * Fails while processes have images attached. The mount may need a moment to notice that one has
 * ended.
 */
async function notBelowGuests(place: string): Promise<void> {
  let guests = await guestsOf(place);
  for (let looks = 0; guests.length > 0 && looks < LOOKS_FOR_GUESTS; looks += 1) {
    await sleep(PAUSE);
    guests = await guestsOf(place);
  }
  if (guests.length > 0) {
    throw inUse(place, guests);
  }
}

/**
 * Attached processes. The kernel knows which processes have opened a file of this mount. A process
 * that attached through an earlier mount of the directory has its file open there. Returns none if
 * this user may not read the mount's status.
 */
async function guestsOf(place: string): Promise<string[]> {
  const mount = await mountOnTheWay(place);
  if (mount === null) return [];
  const text = await withMount(mount, {}, silent, () =>
    readFile(path.join(place, '.pcow', 'status'), 'utf8').catch(() => '{}'),
  );
  const { images = [] } = JSON.parse(text) as {
    images?: { name: string; processes?: UsingProcess[] }[];
  };
  return images.flatMap(({ name, processes = [] }) =>
    processes.map(({ pid, command }) => `process ${pid} (${command}), which has ${name} attached`),
  );
}

/**
 * The mount's process `server` holds the lock of its directory until everything is done, or it
 * dies.
 */
async function ended(directory: string, device: string, server: number | null): Promise<void> {
  for (let looks = 1; ; looks += 1) {
    if (looks % LOOKS_BEFORE_ASKING === 0) {
      const { pid } = await stateOfServer(directory);
      if (server !== null && pid !== null && pid !== server) {
        return; // the next mount has the lock already, and perhaps the same device number
      }
      const others = await mountpointsOfDevice(device);
      if (others.length > 0) {
        throw mountedElsewhere(directory, others);
      }
    }
    if (looks % LOOKS_BEFORE_GIVING_UP === 0) {
      const { pid, stopped } = await stateOfServer(directory);
      if (stopped) {
        throw mountError(
          `the mount of ${directory} is no longer visible, but does not end, because its process ${pid} is stopped: continue it with "kill -CONT ${pid}"`,
          undefined,
          'ETIMEDOUT',
        );
      }
    }
    try {
      lockDirectory(directory).release();
      return;
    } catch (error) {
      if (!isPcowError(error, 'PCOW_LOCKED')) {
        return; // the directory is gone, or this user may not open it
      }
      await sleep(PAUSE);
    }
  }
}

function mountedElsewhere(what: string, others: OtherMountpoint[]): Error {
  return mountError(
    `${what} is still mounted ${others.map(mountpointAndRemedy).join(', ')}`,
    undefined,
    'EBUSY',
  );
}

function mountpointAndRemedy({ mountpoint, pid }: OtherMountpoint): string {
  return pid === null
    ? `on ${mountpoint}: "umount ${word(mountpoint)}" ends that`
    : `on ${mountpoint} in another mount namespace, that of process ${pid}: "nsenter -t ${pid} -m umount ${word(mountpoint)}" ends that`;
}
