/**
 * Before anything accesses a path, the mount into which it leads must answer. mount-life.ts finds
 * out whether it does.
 */
import { PcowError } from '../engine/errors.js';
import { lifeOf, mountOnTheWay, type Trouble, troubleOf, withMount } from './mount-life.js';
import { mountsOfDirectory, type PcowMount } from './mount-table.js';

/** Options of everything that may ask a mount. */
export interface AskOptions {
  /** Called once if a mount takes long to answer. */
  onWait?: ((mount: PcowMount) => void) | undefined;
}

/** Seconds to wait for a mount whose answer is not essential. */
const SHORT = 1;

/** When each mount last answered, by its mountpoint. */
const answered = new Map<string, number>();

/** Milliseconds for which an answer is valid. */
const FRESH = 1000;

/** Runs work that asks a mount. Fails with PCOW_MOUNT if the mount does not answer. */
export function asking<T>(
  mount: PcowMount,
  work: () => Promise<T>,
  options: AskOptions = {},
): Promise<T> {
  return withMount(mount, patience(mount, options), noAnswer, work);
}

/**
 * Fails with PCOW_MOUNT if the mount into which a path leads does not answer. Call it before
 * anything accesses the path.
 */
export async function mustAnswerOnTheWay(given: string, options: AskOptions = {}): Promise<void> {
  const mount = given.includes('\0') ? null : await mountOnTheWay(given);
  if (mount === null || performance.now() - (answered.get(mount.mountpoint) ?? -Infinity) < FRESH)
    return;
  const trouble = troubleOf(mount, await lifeOf(mount, patience(mount, options)));
  if (trouble !== null) throw noAnswer(trouble);
  answered.set(mount.mountpoint, performance.now());
}

/** What is wrong with a mount whose answer is not essential. */
export async function briefTroubleOf(mount: PcowMount): Promise<Trouble | null> {
  return troubleOf(mount, await lifeOf(mount, { limit: SHORT }));
}

/** The same for the mount into which a path leads, if there is one. */
export async function briefTroubleOnTheWay(given: string): Promise<Trouble | null> {
  const mount = await mountOnTheWay(given);
  return mount === null ? null : briefTroubleOf(mount);
}

/**
 * The mount of a directory that can be asked. A dead mount may exist beside it, until it is
 * removed.
 */
export async function mountOf(directory: string): Promise<PcowMount | null> {
  const mounts = await mountsOfDirectory(directory);
  if (mounts.length > 1) {
    for (const mount of mounts) {
      if ((await lifeOf(mount, { limit: SHORT })).state !== 'dead') return mount;
    }
  }
  return mounts[0] ?? null;
}

function patience(mount: PcowMount, { onWait }: AskOptions): { onWait: (() => void) | undefined } {
  return { onWait: onWait && (() => onWait(mount)) };
}

function noAnswer({ message, cure }: Trouble): PcowError {
  return new PcowError('PCOW_MOUNT', message, { next: cure });
}
