/**
 * A mount that is to end while guests run. Processes under the monitor need none: they go on without it, and the next mount of the
 * directory finds them. So this one waits only for whoever else has a flat file open (a guest without the monitor would lose its memory,
 * and a copy its source), and for the commands that are under way. Then the kernel is told to end it.
 *
 * Order: it goes out of sight first, so that nobody opens a file between the last look and the end.
 */
import { writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import { openerOf } from '../../engine/native-operations.js';
import { sentenceOf } from '../failure.js';
import type { FlatFileUse } from '../images/image-entry.js';
import { log } from '../log.js';
import { detach } from './mountpoint.js';
import type { Place } from '../place.js';

/** Milliseconds between looks at who still needs the mount. */
const PAUSE = 50;

/** Takes it out of sight at once, and ends it when `needed` says that nobody needs it. `ended` says that it has ended by itself. */
export async function handOver(place: Place, needed: () => boolean, ended: () => boolean): Promise<void> {
  await detach(place.mountpoint);
  void endWhenUnneeded(place, needed, ended);
}

async function endWhenUnneeded(place: Place, needed: () => boolean, ended: () => boolean): Promise<void> {
  while (!ended() && needed()) await sleep(PAUSE, undefined, { ref: false });
  if (ended()) return;
  const connection = place.device.split(':')[1] ?? '';
  try {
    await writeFile(`/sys/fs/fuse/connections/${connection}/abort`, '1');
  } catch (error) {
    if (ended()) return;
    log(
      `the mount on ${place.mountpoint} is out of sight, and ends when its last file is closed: ` +
        `it can't be ended before (${sentenceOf(error)}): mount -t fusectl fusectl /sys/fs/fuse/connections`,
    );
  }
}

/** Whether somebody has a file open who could not go on without this mount. */
export function neededBy(uses: FlatFileUse[]): boolean {
  return uses.some((use) => !isMonitored(use));
}

/** Opened by a process that has the image attached, to write or to read. A thread that has ended is nobody's. */
function isMonitored({ entry, snapshot, handle }: FlatFileUse): boolean {
  const opener = snapshot === null && handle !== null ? openerOf(handle) : null;
  if (opener === null) return false;
  const monitors = entry.monitor === null ? [...entry.readers] : [entry.monitor, ...entry.readers];
  return monitors.some((monitor) => monitor.hasThread(opener));
}
