/** The program of the watchdog (watchdog.ts): reads what is stopped from its standard input, continues it at the end. */
import { createInterface } from 'node:readline';

import { startTimeOf } from './holders.js';

const stopped = new Map<number, number>();

// The mount may be ended by any of these, sent to a whole group; this process has to outlive it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGPIPE'] as const) {
  process.on(signal, () => undefined);
}

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  if (line === 'done') {
    stopped.clear();
    return;
  }
  const [pid, startTime] = line.split(' ').map(Number);
  if (pid !== undefined && startTime !== undefined) {
    stopped.set(pid, startTime);
  }
});
lines.on('close', () => {
  void continueAll();
});
process.stdout.write('ready\n');

async function continueAll(): Promise<void> {
  for (const [pid, startTime] of stopped) {
    // A later process with this pid is not ours to continue.
    if ((await startTimeOf(pid)) === startTime) {
      try {
        process.kill(pid, 'SIGCONT');
      } catch {
        // it has just ended
      }
    }
  }
  process.exit(0);
}
