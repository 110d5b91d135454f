/**
 * Logs guests that are paused because the disk is full or fails. Monitors report this only when
 * asked. The mount asks them now and then, so that the operator finds it in the log.
 */
import { statfs } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import type { ImageEntry } from '../images/image-entry.js';
import { log } from '../log.js';
import type { Monitor } from '../../attach/monitor.js';
import { attachmentStatus, stalledFaults } from '../../attach/attachment-status.js';

/** Milliseconds between two checks of the disk. */
const PAUSE = 2000;

/**
 * While an image's disk has less space than this (bytes), its monitor is asked at every check;
 * otherwise, because disks can also fail, at every EVERY-th check.
 */
const SHORT_OF_SPACE = 64 << 20;
const EVERY = 15;

/** With less than this many bytes free a disk counts as full. */
const FULL = 1 << 20;

/** Logs when a guest is paused and when it continues, as long as it has the image. */
export async function watchForStalls(entry: ImageEntry, monitor: Monitor): Promise<void> {
  let since: number | null = null;
  for (let look = 1; ; look += 1) {
    await sleep(PAUSE, undefined, { ref: false });
    const free = await freeBytes(entry.file);
    if (entry.monitor !== monitor) return;
    if (since === null && free >= SHORT_OF_SPACE && look % EVERY > 0) continue;
    const stalled = stalledFaults(await attachmentStatus(monitor));
    // While the monitor is busy nothing is known, so nothing is logged.
    if (stalled !== null && stalled > 0 && since === null) {
      since = Date.now();
      const why =
        free < FULL ? 'the disk of its image is full' : 'its image cannot be read or written';
      log(
        `${entry.name}: ${monitor.process} is paused, because ${why}; it continues by itself when this is fixed`,
      );
    } else if (stalled === 0 && since !== null) {
      log(
        `${entry.name}: ${monitor.process} continues after ${Math.round((Date.now() - since) / 1000)} s`,
      );
      since = null;
    }
  }
}

/** On the disk of the image; Infinity if that cannot be found out. */
async function freeBytes(file: string): Promise<number> {
  try {
    const { bsize, bavail } = await statfs(file);
    return bsize * bavail;
  } catch {
    return Infinity;
  }
}
