/**
 * Ends a mount while guests run. Processes under the monitor do not need the mount: they continue
 * without it, and the next mount of the directory finds them. So this mount waits only for other
 * processes with an open flat file (a guest without the monitor would lose its memory, and a copy
 * its source), and for the commands in progress. Then the kernel is told to end it.
 *
 * Order: first the mount is removed from the directory tree, so that no process opens a file
 * between the last check and the end.
 */
import { writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import { openerOf } from '../../engine/native-operations.js';
import { sentenceOf } from '../failure.js';
import type { FlatFileUse } from '../images/image-entry.js';
import { log } from '../log.js';
import { detach } from './mountpoint.js';
import type { Place } from '../place.js';

/** Milliseconds between checks whether the mount is still needed. */
const PAUSE = 50;

/**
 * Removes the mount from the directory tree at once, and ends it when `needed` returns false.
 * `ended` says whether it has ended by itself.
 */
export async function handOver(
  place: Place,
  needed: () => boolean,
  ended: () => boolean,
): Promise<void> {
  await detach(place.mountpoint);
  void endWhenUnneeded(place, needed, ended);
}

async function endWhenUnneeded(
  place: Place,
  needed: () => boolean,
  ended: () => boolean,
): Promise<void> {
  while (!ended() && needed()) await sleep(PAUSE, undefined, { ref: false });
  if (ended()) return;
  const connection = place.device.split(':')[1] ?? '';
  try {
    await writeFile(`/sys/fs/fuse/connections/${connection}/abort`, '1');
  } catch (error) {
    if (ended()) return;
    log(
      `the mount on ${place.mountpoint} is no longer visible, and ends when its last file is closed: ` +
        `it can't be ended earlier (${sentenceOf(error)}); to allow that, "mount -t fusectl fusectl /sys/fs/fuse/connections"`,
    );
  }
}

/** Whether a process that has a file open depends on this mount. */
export function neededBy(uses: FlatFileUse[]): boolean {
  return uses.some((use) => !isMonitored(use));
}

/**
 * Whether the file was opened by a process that has the image attached, to write or to read. false
 * if the opening thread has ended.
 */
function isMonitored({ entry, snapshot, handle }: FlatFileUse): boolean {
  const opener = snapshot === null && handle !== null ? openerOf(handle) : null;
  if (opener === null) return false;
  const monitors = entry.monitor === null ? [...entry.readers] : [entry.monitor, ...entry.readers];
  return monitors.some((monitor) => monitor.hasThread(opener));
}
