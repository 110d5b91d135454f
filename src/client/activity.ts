/**
 * The present activity of all images of a mount, from their `status` control files. `pcow top`
 * shows it.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { asking, type AskOptions } from '../images/mount-answers.js';
import type { PcowMount } from '../images/mount-table.js';
import { naturalOrder } from '../images/natural-order.js';

/**
 * What a page fault needs: a new block, a copy of data from a lower layer, a clean copy that is
 * only read, memory that other processes share, or only a mapping.
 */
export type FaultKind = 'expansion' | 'copyOnWrite' | 'cleanCopy' | 'sharing' | 'mapping';

export const FAULT_KINDS: readonly FaultKind[] = [
  'expansion',
  'copyOnWrite',
  'cleanCopy',
  'sharing',
  'mapping',
];

/** Page faults of one kind. */
export interface FaultFigures {
  /** The number of such faults. */
  count: number;
  /** Microseconds: 99 of 100 faults took at most this long. */
  p99Us: number;
}

/** A process that has an image mapped under the monitor. The counters begin when it attached. */
export interface Activity {
  /** Process id. */
  pid: number;
  /** As in /proc/PID/comm. */
  command: string;
  /** The time at which it attached. */
  since: Date;
  /** Whether it is the writer. */
  writable: boolean;
  /**
   * The report of its monitor; null if the monitor is too busy to answer. Latencies are upper
   * bounds, in microseconds.
   */
  monitor: {
    /** Faults by what they needed. */
    faults: Record<FaultKind, FaultFigures>;
    /** Bytes copied from lower layers. */
    copiedBytes: number;
    /** Bytes of clean copies in memory now, which are the process's alone. */
    cleanCacheBytes: number;
    /** Bytes of the mount's clean store that it has mapped now, and shares with other processes. */
    sharedBytes: number;
    /** Bytes of the image's own blocks that it has mapped now. */
    ownBytes: number;
    /** Memory mappings now. */
    mappings: number;
    /** Faults that had to wait for the disk. */
    stalls: number;
    /** Faults that wait for the disk now. */
    stalledNow: number;
    /** Faults that wait for remote bytes now. */
    fetchingNow: number;
    /** Snapshots that the monitor has taken while the guest ran. */
    snapshots: number;
  } | null;
}

/** What an image of a mount is doing. */
export interface ImageActivity {
  /** Its name in the mount. */
  name: string;
  /** "ok", or what is wrong with the image, as in `status`. */
  state: string;
  /** The writer first. */
  attached: Activity[];
  /** Flat files that are open without the monitor. */
  open: number;
  /** The number of its snapshots. */
  snapshots: number;
}

/** One look at a mount. */
export interface Look {
  /** The mountpoint. */
  mountpoint: string;
  /** The time of the look. */
  time: Date;
  /** Sorted, with numbers in names compared as numbers. */
  images: ImageActivity[];
  /** The memory that processes on one base share; null if the mount has none. */
  cleanStore: StoreActivity | null;
}

/** The clean store of a mount. All in bytes. */
export interface StoreActivity {
  /** The most memory that it may take. */
  budget: number;
  /** What it holds. */
  bytes: number;
  /** What all attached processes together have mapped of it. */
  shared: number;
  /** How much more they would need if each had a copy. */
  saved: number;
}

/**
 * What the images of a mount are doing. Never call it from the mount's own process. Errors:
 * PCOW_MOUNT if the mount does not answer.
 */
export function lookAt(mount: PcowMount, options: AskOptions = {}): Promise<Look> {
  return asking(mount, () => look(mount), options);
}

async function look({ mountpoint }: PcowMount): Promise<Look> {
  const control = path.join(mountpoint, '.pcow');
  const { images, cleanStore } = await jsonOf(path.join(control, 'status'));
  const names = listOf(images)
    .map((image) => textOf(image.name))
    .sort(naturalOrder);
  const found = await Promise.all(
    names.map(async (name) => {
      try {
        return imageActivity(name, await jsonOf(path.join(control, name, 'status')));
      } catch (error) {
        if (isGone(error)) return null; // it was removed or renamed in the meantime
        throw error;
      }
    }),
  );
  return {
    mountpoint,
    time: new Date(),
    images: found.filter((image) => image !== null),
    cleanStore: storeActivity(cleanStore),
  };
}

function storeActivity(status: unknown): StoreActivity | null {
  if (typeof status !== 'object' || status === null) return null;
  const { budget, bytes, shared, saved } = objectOf(status);
  return {
    budget: numberOf(budget),
    bytes: numberOf(bytes),
    shared: numberOf(shared),
    saved: numberOf(saved),
  };
}

function isGone(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

function imageActivity(name: string, status: Json): ImageActivity {
  const open = objectOf(status.open);
  const processes = [status.attached, ...listOf(status.readers)].map(objectOf);
  return {
    name,
    state: textOf(status.state),
    attached: processes.filter(({ pid }) => pid !== undefined).map(activity),
    open: numberOf(open.reading) + numberOf(open.writing) + numberOf(open.snapshots),
    snapshots: numberOf(status.snapshots),
  };
}

function activity(status: Json): Activity {
  const { pid, command, since, writable, monitor } = status;
  return {
    pid: numberOf(pid),
    command: textOf(command),
    since: new Date(textOf(since)),
    writable: writable === true,
    monitor:
      monitor === null || typeof monitor !== 'object' ? null : monitorFigures(objectOf(monitor)),
  };
}

function monitorFigures(figures: Json): Activity['monitor'] {
  const kinds = objectOf(figures.faults);
  const fault = (kind: FaultKind) => {
    const { count, p99Us } = objectOf(kinds[kind]);
    return { count: numberOf(count), p99Us: numberOf(p99Us) };
  };
  return {
    faults: {
      expansion: fault('expansion'),
      copyOnWrite: fault('copyOnWrite'),
      cleanCopy: fault('cleanCopy'),
      sharing: fault('sharing'),
      mapping: fault('mapping'),
    },
    copiedBytes: numberOf(figures.copiedBytes),
    cleanCacheBytes: numberOf(figures.cleanCacheBytes),
    sharedBytes: numberOf(figures.sharedBytes),
    ownBytes: numberOf(figures.ownBytes),
    mappings: numberOf(figures.mappings),
    stalls: numberOf(figures.stalls),
    stalledNow: numberOf(figures.stalled),
    fetchingNow: numberOf(figures.fetching),
    snapshots: numberOf(figures.liveSnapshots),
  };
}

/**
 * A report of another process may contain anything: each value must have the expected type, or is
 * ignored.
 */
type Json = Record<string, unknown>;

async function jsonOf(file: string): Promise<Json> {
  return objectOf(JSON.parse(await readFile(file, 'utf8')));
}

function objectOf(value: unknown): Json {
  return typeof value === 'object' && value !== null ? (value as Json) : {};
}

function listOf(value: unknown): Json[] {
  return Array.isArray(value) ? value.map(objectOf) : [];
}

function numberOf(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) ? value : 0;
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
