/** Suites of several hosts: the machine that started the lab tells the hosts what to do. */
import { setTimeout as sleep } from 'node:timers/promises';

import { Hosts } from './hosts.js';

export interface Stage {
  hosts: Hosts;
  /** A line of TAP. The suite ends at the first step that fails, because the next ones need it. */
  step: (name: string, work: () => Promise<unknown>) => Promise<void>;
}

/** Runs a suite, and resolves with its exit code. */
export async function conduct(
  hosts: { count: number; kernel: string; minutes: number },
  play: (stage: Stage) => Promise<void>,
): Promise<number> {
  let there: Hosts | undefined;
  let said = '';
  const step: Stage['step'] = async (name, work) => {
    said = name;
    const began = Date.now();
    await work();
    const seconds = Math.round((Date.now() - began) / 1000);
    process.stdout.write(`ok - lab: ${name} (${seconds} s)\n`);
  };
  // The step that waits for a host fails then.
  const stop = (): void => void there?.close();
  const limit = setTimeout(stop, hosts.minutes * 60_000);
  process.on('SIGINT', stop).on('SIGTERM', stop);
  try {
    await step(`${hosts.count} hosts`, async () => {
      there = await Hosts.start(hosts.count, hosts.kernel);
    });
    if (there) await play({ hosts: there, step });
    return 0;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    process.stdout.write(`not ok - lab: ${said}\n${text.replaceAll(/^/gm, '  # ')}\n`);
    return 1;
  } finally {
    clearTimeout(limit);
    process.off('SIGINT', stop).off('SIGTERM', stop);
    await there?.close();
  }
}

/** Waits for a condition, as long as it takes: `minutes` of the suite are the limit. */
export async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(500);
}

export function must(condition: boolean, complaint: string): void {
  if (!condition) throw new Error(complaint);
}
