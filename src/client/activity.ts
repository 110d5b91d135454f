/** What all images of a mount are doing now, from their `status` control files. `pcow top` shows it. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { naturalOrder } from '../images/natural-order.js';

export const FAULT_KINDS = ['expansion', 'copy_on_write', 'clean_copy', 'mapping'] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** A process that has an image mapped under the monitor. Counters run from when it attached. */
export interface Activity {
  pid: number;
  command: string;
  since: Date;
  writable: boolean;
  /** What its monitor says; null where it is too busy to answer. Latencies are upper bounds, in microseconds. */
  monitor: {
    faults: Record<FaultKind, { count: number; p99Us: number }>;
    copiedBytes: number;
    cleanCacheBytes: number;
    mappings: number;
    /** Faults that found no disk space; those that wait for it now. */
    stalls: number;
    stalledNow: number;
    snapshots: number;
  } | null;
}

export interface ImageActivity {
  name: string;
  /** "ok", or what is wrong with it, as in `status`. */
  state: string;
  /** The writer first. */
  attached: Activity[];
  /** Plainly open flat files. */
  open: number;
  snapshots: number;
}

export interface Look {
  mountpoint: string;
  time: Date;
  images: ImageActivity[];
}

/** Rejects with the error of the system where the mount does not answer. Never call it from the mount's own process. */
export async function lookAt(mountpoint: string): Promise<Look> {
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
        if (isGone(error)) return null; // removed or renamed since
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
      copy_on_write: fault('copy_on_write'),
      clean_copy: fault('clean_copy'),
      mapping: fault('mapping'),
    },
    copiedBytes: numberOf(figures.copied_bytes),
    cleanCacheBytes: numberOf(figures.clean_cache_bytes),
    mappings: numberOf(figures.mappings),
    stalls: numberOf(figures.stalls),
    stalledNow: numberOf(figures.stalled),
    snapshots: numberOf(figures.live_snapshots),
  };
}

/** What another process says of itself may be anything: each value is taken for what it should be, or for nothing. */
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
