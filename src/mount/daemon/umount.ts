/** Ending a mount from another process. */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { lockDirectory } from '../../engine/directory-lock.js';
import { isPcowError } from '../../engine/index.js';
import { usersBelow } from '../../engine/processes.js';
import { mountOnTheWay, stateOfServer, withMount } from '../../images/mount-life.js';
import {
  MOUNT_TYPE,
  mountTable,
  type MountTableEntry,
  type OtherPlace,
  placesOfDevice,
} from '../../images/mount-table.js';
import { word } from '../../engine/quote.js';
import type { UsingProcess } from '../control/status.js';
import { clearDeadMount, inUse, mountError, placeOf, silent, unmountFailure } from './mountpoint.js';

const run = promisify(execFile);

/** Milliseconds between looks at whether the mount's process has ended. */
const PAUSE = 20;

/** Looks after which a process that has an image attached counts as alive. */
const LOOKS_FOR_GUESTS = 25;

/** Looks after which, and after each as many more, it is asked whether the file system is mounted elsewhere: then it does not end. */
const LOOKS_BEFORE_ASKING = 100;

/** Looks after which, and after each as many more, it is asked whether the mount's process is stopped. (A last sync may take long.) */
const LOOKS_BEFORE_GIVING_UP = 150;

/**
 * Ends the mount on a mountpoint. Resolves when its last sync is done and every image is closed; rejects with EBUSY, and the mount goes
 * on, where somebody uses it, or where it is mounted elsewhere as well. Clears a dead mount away.
 */
export async function umount(mountpoint: string): Promise<void> {
  if (await clearDeadMount(mountpoint)) {
    return;
  }
  const { mountpoint: place, source, device } = await mountOn(mountpoint);
  await notBelowGuests(place);
  const { pid: server } = await stateOfServer(source);
  try {
    await run('fusermount3', ['-u', '--', place]);
  } catch (cause) {
    throw await unmountFailure(place, cause);
  }
  await ended(source, device, server);
}

/**
 * Rejects with EBUSY where umount() would now, because somebody uses the mount; changes nothing, but that it clears a dead one away. Only
 * umount() itself finds a loop device, a process that this user can't see, and a mount namespace that would keep the mount.
 */
export async function checkUnused(mountpoint: string): Promise<void> {
  if (await clearDeadMount(mountpoint)) return;
  const { mountpoint: place, device } = await mountOn(mountpoint);
  await notBelowGuests(place);
  const users = await usersBelow(place);
  if (users.length > 0) throw inUse(place, users);
  const elsewhere = (await placesOfDevice(device)).filter((it) => it.pid === null && it.mountpoint !== place);
  if (elsewhere.length > 0) throw mountedElsewhere(place, elsewhere);
}

async function mountOn(mountpoint: string): Promise<MountTableEntry> {
  const place = await placeOf(mountpoint);
  const mount = (await mountTable()).findLast((entry) => entry.mountpoint === place);
  if (mount?.type === MOUNT_TYPE) return mount;
  throw mountError(
    `no image directory is mounted on ${mountpoint}: "pcow list DIR" says where DIR is mounted`,
    undefined,
    'EINVAL',
  );
}

/** Fails while processes have images attached. The mount may take a moment to see that one has ended. */
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
 * Attached processes. The kernel tells of those that have opened a file of this mount, but one that has come from an earlier mount of the
 * directory has its file open there. Nobody, where the mount does not say it to this user.
 */
async function guestsOf(place: string): Promise<string[]> {
  const mount = await mountOnTheWay(place);
  if (mount === null) return [];
  const text = await withMount(mount, {}, silent, () =>
    readFile(path.join(place, '.pcow', 'status'), 'utf8').catch(() => '{}'),
  );
  const { images = [] } = JSON.parse(text) as { images?: { name: string; processes?: UsingProcess[] }[] };
  return images.flatMap(({ name, processes = [] }) =>
    processes.map(({ pid, command }) => `process ${pid} (${command}), which has ${name} attached`),
  );
}

/** The mount's process `server` holds the lock of its directory until all is done, or it dies. */
async function ended(directory: string, device: string, server: number | null): Promise<void> {
  for (let looks = 1; ; looks += 1) {
    if (looks % LOOKS_BEFORE_ASKING === 0) {
      const { pid } = await stateOfServer(directory);
      if (server !== null && pid !== null && pid !== server) {
        return; // the next mount has the lock already, and perhaps the same device number
      }
      const places = await placesOfDevice(device);
      if (places.length > 0) {
        throw mountedElsewhere(directory, places);
      }
    }
    if (looks % LOOKS_BEFORE_GIVING_UP === 0) {
      const { pid, stopped } = await stateOfServer(directory);
      if (stopped) {
        throw mountError(
          `the mount of ${directory} is out of sight, but does not end: its process ${pid} is stopped: let it go on with "kill -CONT ${pid}"`,
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
        return; // the directory is gone, or not ours to look at
      }
      await sleep(PAUSE);
    }
  }
}

function mountedElsewhere(what: string, places: OtherPlace[]): Error {
  return mountError(`${what} goes on being mounted ${places.map(placeAndRemedy).join(', ')}`, undefined, 'EBUSY');
}

function placeAndRemedy({ mountpoint, pid }: OtherPlace): string {
  return pid === null
    ? `on ${mountpoint}: "umount ${word(mountpoint)}" takes that away`
    : `on ${mountpoint} in another mount namespace, that of process ${pid}: "nsenter -t ${pid} -m umount ${word(mountpoint)}" takes that away`;
}
