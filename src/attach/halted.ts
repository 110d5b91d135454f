/**
 * Whether a process cannot answer because it does not run: a signal or a debugger has stopped it,
 * or its control group is frozen (for example by "docker pause"). Reads only /proc and the control
 * groups. A process that this mount cannot see counts as running.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { stateOf, textOf, threadsOf } from '../engine/processes.js';

/**
 * Milliseconds for which a process may be halted: a debugger that attaches stops it for a moment.
 */
const HALT_LIMIT = 3000;

/** Milliseconds between two checks. */
const PAUSE = 250;

/**
 * Resolves with the reason why the process does not run, as soon as that has lasted for HALT_LIMIT.
 * Resolves with null only after `over`. Does not look at once: each look reads a file for each
 * thread, and most answers come sooner, some of them to a guest that is frozen until then.
 */
export async function halted(pid: number, over: AbortSignal): Promise<string | null> {
  let since: number | null = null;
  for (;;) {
    await sleep(PAUSE, undefined, { signal: over, ref: false }).catch(() => undefined);
    if (over.aborted) {
      return null;
    }
    const reason = await reasonOf(pid);
    const now = performance.now();
    since = reason === null ? null : (since ?? now);
    if (reason !== null && since !== null && now - since >= HALT_LIMIT) {
      return reason;
    }
  }
}

/** Waits until the process runs, or until `over`. */
export async function running(pid: number, over: AbortSignal): Promise<void> {
  while (!over.aborted && (await reasonOf(pid)) !== null) {
    await sleep(PAUSE, undefined, { signal: over, ref: false }).catch(() => undefined);
  }
}

async function reasonOf(pid: number): Promise<string | null> {
  const threads = pid === 0 ? [] : await threadsOf(pid);
  if (threads.length === 0) {
    return null;
  }
  const states = await Promise.all(threads.map((thread) => stateOf(pid, thread)));
  const alive = states.filter((state) => state !== null && !'ZXx'.includes(state));
  if (alive.length > 0 && alive.every((state) => state === 'T' || state === 't')) {
    return `is stopped: continue it ("kill -CONT ${pid}")`;
  }
  return (await isFrozen(pid)) ? 'is in a frozen control group: thaw the group' : null;
}

async function isFrozen(pid: number): Promise<boolean> {
  const groups = (await textOf(`/proc/${pid}/cgroup`)).split('\n');
  for (const line of groups) {
    // number:controllers:path
    const [, controllers, group] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (group === undefined) {
      continue;
    }
    if (
      controllers === '' &&
      /^frozen 1$/m.test(await textOf(`/sys/fs/cgroup${group}/cgroup.events`))
    ) {
      return true;
    }
    const state =
      controllers === 'freezer' ? await textOf(`/sys/fs/cgroup/freezer${group}/freezer.state`) : '';
    if (state.startsWith('FROZEN')) {
      return true;
    }
  }
  return false;
}
