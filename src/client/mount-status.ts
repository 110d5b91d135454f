/** What a mount reports about itself and its images, in their `status` files. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import createDebug from 'debug';
import type { PcowErrorCode } from '../engine/index.js';
import { asking, type AskOptions } from '../images/mount-answers.js';
import type { PcowMount } from '../images/mount-table.js';

const debug = createDebug('pcow:client');

/** An error, as a mount reports it. */
export interface ToldError {
  /** As Date reads it. */
  time: string;
  /**
   * The control file, or "mv", "rm", "open", "truncate", "attach". null: a read, write or sync of
   * the flat file.
   */
  command: string | null;
  /** The code of a PcowError. */
  code: PcowErrorCode;
  /** The name of the errno, for example "EBUSY". */
  errno: string;
  /** A sentence. */
  message: string;
}

/**
 * The fields of `.pcow/NAME/status` that every image has. docs/control-files.md has all of them.
 */
export interface MountedStatus {
  /** "ok", or what is wrong with the image. */
  state: string;
  /** A sentence if the state is not "ok". */
  problem: string | null;
  /** The long command that the mount is running on the image. */
  working?: {
    /** The control file. */
    command: string;
    /** The text that was written to it. */
    text: string;
    /** Bytes. */
    done: number;
    /** Bytes; 0 until it is known. */
    total: number;
  } | null;
  /** The last command, read or write that failed. */
  lastError: ToldError | null;
  /** Other fields. */
  [field: string]: unknown;
}

/** Other fields of a `status` file. */
interface MoreStatus {
  monitors?: { problem: string | null };
  attached?: { pid: number; command: string; monitor: { stalled?: number } | null } | null;
}

/** A process that writes an image through a monitor, from its mount's status. */
export interface Attached {
  pid: number;
  command: string;
  /** It is paused: the disk is full or fails. */
  stalled: boolean;
}

/** The control directory of a mount, or of one of its images. */
export function controlDirectory(
  { mountpoint }: Pick<PcowMount, 'mountpoint'>,
  image?: string,
): string {
  return path.join(mountpoint, '.pcow', ...(image === undefined ? [] : [image]));
}

/** Returns null if the image has no control files: a control file has its name. */
export async function statusIn(directory: string): Promise<MountedStatus | null> {
  try {
    return JSON.parse(await readFile(path.join(directory, 'status'), 'utf8')) as MountedStatus;
  } catch (error) {
    // Then only the errno of the command is known.
    debug('no status in %s: %s', directory, error);
    return null;
  }
}

/** The process that is attached to the image; null: none. */
export async function attachedTo(mountpoint: string, name: string): Promise<Attached | null> {
  const { attached } = ((await statusIn(controlDirectory({ mountpoint }, name))) ??
    {}) as MoreStatus;
  return attached
    ? {
        pid: attached.pid,
        command: attached.command,
        stalled: (attached.monitor?.stalled ?? 0) > 0,
      }
    : null;
}

/** Why no process can attach to the images of a mount, from its status; null if processes can. */
export async function monitorsProblem(
  mount: PcowMount,
  options: AskOptions = {},
): Promise<string | null> {
  const status = (await asking(
    mount,
    () => statusIn(controlDirectory(mount)),
    options,
  )) as MoreStatus | null;
  return status?.monitors?.problem ?? null;
}
