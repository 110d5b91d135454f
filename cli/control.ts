/** Asking a mount to change its images (src/client), as commands do it: with their progress, and words for who waits. */
import * as client from '../src/client/control.js';
import { controlDirectory, statusIn } from '../src/client/control.js';
import type { ImageControl } from '../src/images/control-names.js';
import { isPcowError } from '../src/engine/errors.js';
import type { PcowMount } from '../src/images/mount-table.js';
import { asking, mustAnswerOnTheWay, sayThatItWaits } from './asking.js';
import { Failure, warn } from './output/errors.js';
import { type ProgressForm, withProgress } from './output/progress.js';

/** Writes `text` to a control file of one image; returns when the mount has done it. */
export function askImage(mount: PcowMount, image: string, control: ImageControl, text: string): Promise<void> {
  return asTold(client.askImage(mount, image, control, text, sayThatItWaits));
}

/** The same for what takes long: with its progress, and stopped by Ctrl-C. `label` names it. */
export async function askForWork(
  { mount, name }: { mount: PcowMount; name: string },
  control: ImageControl,
  text: string,
  label: string,
  form: ProgressForm | undefined,
): Promise<void> {
  await mustAnswerOnTheWay(controlDirectory(mount, name));
  const onGoesOn = () => {
    warn('pcow', `${name}: this can't be stopped, and goes on in the mount; Ctrl-C again leaves it alone`);
  };
  await withProgress(label, form, (long) =>
    asTold(client.askForWork(mount, name, control, text, { ...long, onWait: sayThatItWaits, onGoesOn })),
  );
}

/** One cut across several images of a mount. */
export function askForCut(mount: PcowMount, name: string, images: string[]): Promise<void> {
  return asTold(client.askForCut(mount, name, images, sayThatItWaits));
}

/** What a mount tells is told as it is, also by those that have words of their own for some errors (drafts.ts). */
async function asTold(asked: Promise<void>): Promise<void> {
  try {
    await asked;
  } catch (error) {
    throw isPcowError(error) ? new Failure(error.code, error.message, error.next) : error;
  }
}

/** Gives an image another name. */
export function askForRename(mount: PcowMount, image: string, newName: string): Promise<void> {
  return asTold(client.askForRename(mount, image, newName, sayThatItWaits));
}

/** What a `status` file says beside what the library knows of it (src/mount/control/status.ts). */
interface Status {
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

export async function attachedTo(mountpoint: string, name: string): Promise<Attached | null> {
  const attached = ((await statusIn(controlDirectory({ mountpoint }, name))) as Status | null)?.attached ?? null;
  return attached && { pid: attached.pid, command: attached.command, stalled: (attached.monitor?.stalled ?? 0) > 0 };
}

/** Why no process can attach to the images of a mount, as its status says; null where they can. */
export async function monitorsProblem(mount: PcowMount): Promise<string | null> {
  const status = (await asking(mount, () => statusIn(controlDirectory(mount)))) as Status | null;
  return status?.monitors?.problem ?? null;
}
