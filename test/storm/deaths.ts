/** Processes that a storm starts and kills. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

import type { ExecutionContext } from 'ava';

import type { Random } from '../helpers/random.js';

/** Ends with the test, at the latest. */
export function started(t: ExecutionContext<unknown>, words: string[]): ChildProcess {
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...words], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

/** Waits until it has ended, by itself or by the signal. */
export async function ended(child: ChildProcess | null, signal?: NodeJS.Signals): Promise<void> {
  if (child?.exitCode !== null || child.signalCode !== null) return;
  const closed = once(child, 'close');
  if (signal) child.kill(signal);
  await closed;
}

export function shuffled<T>(random: Random, list: T[]): T[] {
  return list
    .map((item) => ({ item, at: random.next() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
