/** Waits for conditions that become true without a notification. */
import { setTimeout as sleep } from 'node:timers/promises';

/** Milliseconds between checks. */
const PAUSE = 20;
const LOOKS = 1000;

/** Resolves when the condition holds; fails if it never does. */
export async function eventually(condition: () => Promise<boolean>): Promise<void> {
  for (let look = 0; look < LOOKS; ++look) {
    if (await condition()) return;
    await sleep(PAUSE);
  }
  throw new Error(`this did not come true: ${String(condition)}`);
}
