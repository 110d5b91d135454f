/** What a mount says of itself and of its images, in their `status` files. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import createDebug from 'debug';
import type { PcowErrorCode } from '../engine/index.js';
import { asking, type AskOptions } from '../images/mount-answers.js';
import type { PcowMount } from '../images/mount-table.js';

const debug = createDebug('pcow:client');

/** Why something has failed, as a mount tells it. */
export interface ToldError {
  /** As Date reads it. */
  time: string;
  /** The control file; "mv", "rm", "open", "truncate", "attach"; null: a read, write or sync of the flat file. */
  command: string | null;
  /** As that of a PcowError. */
  code: PcowErrorCode;
  /** Its name, for example "EBUSY". */
  errno: string;
  /** A sentence. */
  message: string;
}

/** What `.pcow/NAME/status` says, as far as it is the same for every image; docs/control-files.md has all of it. */
export interface MountedStatus {
  /** "ok", or what is wrong with the image. */
  state: string;
  /** A sentence, where the state is not "ok". */
  problem: string | null;
  /** What the mount is doing to the image at somebody's request. */
  working?: {
    /** The control file. */
    command: string;
    /** What was written to it. */
    text: string;
    /** Bytes. */
    done: number;
    /** Bytes; 0 until it is known. */
    total: number;
  } | null;
  /** Of the last command, read or write that failed. */
  lastError: ToldError | null;
  /** The rest. */
  [field: string]: unknown;
}

/** What a `status` file says beside that. */
interface MoreStatus {
  monitors?: { problem: string | null };
  attached?: { pid: number; command: string; monitor: { stalled?: number } | null } | null;
}

/** A process that writes an image through a monitor, as its mount's status says. */
export interface Attached {
  pid: number;
  command: string;
  /** It stands still: the disk has no room for what it writes, or fails. */
  stalled: boolean;
}

/** Of a mount, or of one of its images. */
export function controlDirectory({ mountpoint }: Pick<PcowMount, 'mountpoint'>, image?: string): string {
  return path.join(mountpoint, '.pcow', ...(image === undefined ? [] : [image]));
}

/** null where an image has no control files: its name is that of a control file. */
export async function statusIn(directory: string): Promise<MountedStatus | null> {
  try {
    return JSON.parse(await readFile(path.join(directory, 'status'), 'utf8')) as MountedStatus;
  } catch (error) {
    // The errno of the command alone must do then, and it is at hand.
    debug('no status in %s: %s', directory, error);
    return null;
  }
}

/** null where no process is attached to the image. */
export async function attachedTo(mountpoint: string, name: string): Promise<Attached | null> {
  const { attached } = ((await statusIn(controlDirectory({ mountpoint }, name))) ?? {}) as MoreStatus;
  return attached
    ? { pid: attached.pid, command: attached.command, stalled: (attached.monitor?.stalled ?? 0) > 0 }
    : null;
}

/** Why no process can attach to the images of a mount, as its status says; null where they can. */
export async function monitorsProblem(mount: PcowMount, options: AskOptions = {}): Promise<string | null> {
  const status = (await asking(mount, () => statusIn(controlDirectory(mount)), options)) as MoreStatus | null;
  return status?.monitors?.problem ?? null;
}
