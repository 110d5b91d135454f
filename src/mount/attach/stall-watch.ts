/**
 * Guests that stand still because the disk has no room for what they write, or fails. Their monitors tell of it when they are asked; this
 * asks, now and then, so that the operator finds it in the log.
 */
import { statfs } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import type { ImageEntry } from '../images/image-entry.js';
import { log } from '../log.js';
import type { Monitor } from '../../attach/monitor.js';
import { attachmentStatus, stalledFaults } from '../../attach/attachment-status.js';

/** Milliseconds between two looks at the disk. */
const PAUSE = 2000;

/** A monitor is asked at every look where its disk has less space than this (bytes), and otherwise, for disks fail as well, at every so many. */
const SHORT_OF_SPACE = 64 << 20;
const EVERY = 15;

/** With less than this many bytes free a disk counts as full. */
const FULL = 1 << 20;

/** Logs when a guest comes to stand still, and when it goes on; as long as it has the image. */
export async function watchForStalls(entry: ImageEntry, monitor: Monitor): Promise<void> {
  let since: number | null = null;
  for (let look = 1; ; look += 1) {
    await sleep(PAUSE, undefined, { ref: false });
    const free = await freeBytes(entry.file);
    if (entry.monitor !== monitor) return;
    if (since === null && free >= SHORT_OF_SPACE && look % EVERY > 0) continue;
    const stalled = stalledFaults(await attachmentStatus(monitor));
    // While it is busy nothing is known, and nothing is said.
    if (stalled !== null && stalled > 0 && since === null) {
      since = Date.now();
      const why = free < FULL ? 'the disk of its image is full' : 'its image cannot be read or written';
      log(`${entry.name}: ${monitor.process} stands still, for ${why}; it goes on by itself when that is mended`);
    } else if (stalled === 0 && since !== null) {
      log(`${entry.name}: ${monitor.process} goes on after ${Math.round((Date.now() - since) / 1000)} s`);
      since = null;
    }
  }
}

/** On the disk of the image; Infinity where that can't be told. */
async function freeBytes(file: string): Promise<number> {
  try {
    const { bsize, bavail } = await statfs(file);
    return bsize * bavail;
  } catch {
    return Infinity;
  }
}
