/**
 * The present activity of all images of a mount, from their `status` control files. `pcow top`
 * shows it.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { asking, type AskOptions } from '../images/mount-answers.js';
import type { PcowMount } from '../images/mount-table.js';
import { naturalOrder } from '../images/natural-order.js';

/** What a page fault needs: a new block, a copy of data from below, a clean copy that is only read, or a mapping alone. */
export type FaultKind = 'expansion' | 'copyOnWrite' | 'cleanCopy' | 'mapping';

export const FAULT_KINDS: readonly FaultKind[] = ['expansion', 'copyOnWrite', 'cleanCopy', 'mapping'];

/** Page faults of one kind. */
export interface FaultFigures {
  /** How many there were. */
  count: number;
  /** Microseconds that 99 of 100 took at most. */
  p99Us: number;
}

/** A process that has an image mapped under the monitor. The counters begin when it attached. */
export interface Activity {
  /** Process id. */
  pid: number;
  /** As in /proc/PID/comm. */
  command: string;
  /** When it attached. */
  since: Date;
  /** Whether it is the writer. */
  writable: boolean;
  /**
   * The report of its monitor; null if the monitor is too busy to answer. Latencies are upper
   * bounds, in microseconds.
   */
  monitor: {
    /** By what they needed. */
    faults: Record<FaultKind, FaultFigures>;
    /** Bytes copied from below. */
    copiedBytes: number;
    /** Bytes of clean copies in memory now. */
    cleanCacheBytes: number;
    /** Memory mappings now. */
    mappings: number;
    /** Faults that found no disk space. */
    stalls: number;
    /** Those that wait for it now. */
    stalledNow: number;
    /** Snapshots that it has taken under the guest. */
    snapshots: number;
  } | null;
}

/** What an image of a mount is doing. */
export interface ImageActivity {
  /** As the mount calls it. */
  name: string;
  /** "ok", or what is wrong with the image, as in `status`. */
  state: string;
  /** The writer first. */
  attached: Activity[];
  /** Flat files that are open without the monitor. */
  open: number;
  /** How many. */
  snapshots: number;
}

/** One look at a mount. */
export interface Look {
  /** Where it is mounted. */
  mountpoint: string;
  /** When. */
  time: Date;
  /** In the order in which people count. */
  images: ImageActivity[];
}

/** What the images of a mount are doing. Never call it from the mount's own process. Errors: PCOW_MOUNT where it does not answer. */
export function lookAt(mount: PcowMount, options: AskOptions = {}): Promise<Look> {
  return asking(mount, () => look(mount), options);
}

async function look({ mountpoint }: PcowMount): Promise<Look> {
  const control = path.join(mountpoint, '.pcow');
  const { images } = await jsonOf(path.join(control, 'status'));
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
  return { mountpoint, time: new Date(), images: found.filter((image) => image !== null) };
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
    monitor: monitor === null || typeof monitor !== 'object' ? null : monitorFigures(objectOf(monitor)),
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
      mapping: fault('mapping'),
    },
    copiedBytes: numberOf(figures.copiedBytes),
    cleanCacheBytes: numberOf(figures.clean_cache_bytes),
    mappings: numberOf(figures.mappings),
    stalls: numberOf(figures.stalls),
    stalledNow: numberOf(figures.stalled),
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
