/**
 * Commands that ask a mount: none waits for ever for one that has died, is stopped or hangs, and what it says then names the mount, its
 * process and the cure (src/images/mount-life.ts finds out).
 */
import type { Command } from 'commander';
import { lifeOf, mountOnTheWay, type Trouble, troubleOf, withMount } from '../src/images/mount-life.js';
import { mountsOfDirectory, type PcowMount } from '../src/images/mount-table.js';
import { Failure, warn } from './output/errors.js';

/** Seconds for what goes on without the mount's answer. */
const SHORT = 1;

/** Does what asks a mount; fails where that does not answer. */
export function asking<T>(mount: PcowMount, work: () => Promise<T>): Promise<T> {
  return withMount(mount, patience(mount), failureOf, work);
}

/** When each mount has answered last, by its mountpoint. */
const answered = new Map<string, number>();

/** Milliseconds for which an answer counts. */
const FRESH = 1000;

/** Fails where the mount that a path leads into does not answer. To be called before anything touches the path. */
export async function mustAnswerOnTheWay(given: string): Promise<void> {
  const mount = given.includes('\0') ? null : await mountOnTheWay(given);
  if (mount === null || performance.now() - (answered.get(mount.mountpoint) ?? -Infinity) < FRESH) return;
  const trouble = troubleOf(mount, await lifeOf(mount, patience(mount)));
  if (trouble !== null) throw failureOf(trouble);
  answered.set(mount.mountpoint, performance.now());
}

/** What is wrong with a mount that a command can do without. */
export async function briefTroubleOf(mount: PcowMount): Promise<Trouble | null> {
  return troubleOf(mount, await lifeOf(mount, { limit: SHORT }));
}

/** The same of the mount that a path leads into, if it does. */
export async function briefTroubleOnTheWay(given: string): Promise<Trouble | null> {
  const mount = await mountOnTheWay(given);
  return mount === null ? null : briefTroubleOf(mount);
}

/** The mount of a directory that can be asked. One that has died may lie beside it, as long as nobody clears it away. */
export async function mountOf(directory: string): Promise<PcowMount | null> {
  const mounts = await mountsOfDirectory(directory);
  if (mounts.length > 1) {
    for (const mount of mounts) {
      if ((await lifeOf(mount, { limit: SHORT })).state !== 'dead') return mount;
    }
  }
  return mounts[0] ?? null;
}

/** Commands that ask no mount before they know it, or that say themselves what is wrong with it. */
const ASK_THEMSELVES = ['run', 'umount', 'doctor', 'completion', 'exit-codes'];

/** Before a command looks at anything: each mount that a word of its command line leads into must answer. */
export async function askMountsOf(command: Command): Promise<void> {
  if (ASK_THEMSELVES.includes(command.name())) return;
  const values = Object.values(command.opts<Record<string, unknown>>());
  // “mount DIR MOUNTPOINT” clears a dead mount away.
  const words = command.name().startsWith('mount') ? command.args.slice(0, 1) : [...command.args, ...values];
  for (const word of words) if (typeof word === 'string') await mustAnswerOnTheWay(word);
}

function patience(mount: PcowMount): { onWait: () => void } {
  return {
    onWait: () => {
      sayThatItWaits(mount);
    },
  };
}

/** Once, where a mount takes its time to answer. */
export function sayThatItWaits({ mountpoint }: PcowMount): void {
  warn('pcow', `waiting for the mount on ${mountpoint}, which does not answer`);
}

function failureOf({ message, cure }: Trouble): Failure {
  return new Failure('PCOW_MOUNT', message, cure);
}
