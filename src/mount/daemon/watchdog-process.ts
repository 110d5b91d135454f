/**
 * The program of the watchdog (watchdog.ts): DIRECTORY PID START-TIME. Reads what is stopped from its standard input. When that
 * ends, it continues what is still stopped; and where the mount was not ended in order, it makes durable what that has left.
 */
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { startTimeOf } from '../../engine/processes.js';

/** Milliseconds between two looks at whether the killed mount has let go of its images. */
const PAUSE = 20;

const [directory = '', mountPid = '', mountStart = ''] = process.argv.slice(2);
const stopped = new Map<number, number>();
let orderly = false;

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
  if (line === 'end') {
    orderly = true;
    return;
  }
  const [pid, startTime] = line.split(' ').map(Number);
  if (pid !== undefined && startTime !== undefined) {
    stopped.set(pid, startTime);
  }
});
lines.on('close', () => {
  void finish();
});
// The mount may have been killed before this process had begun: then nobody reads this.
process.stdout.on('error', () => undefined);
process.stdout.write('ready\n');

async function finish(): Promise<void> {
  await continueAll();
  if (!orderly) {
    await recover();
  }
  process.exit(0);
}

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
}

/** Nobody is told what fails here: whoever opens the image next meets it, and is. */
async function recover(): Promise<void> {
  // The engine is loaded only when it is needed.
  const { recoverDirectory } = await import('../../engine/index.js');
  // The pipe ends before a dying process has closed its last file: its locks go after that.
  while (await mountLives()) {
    await sleep(PAUSE);
  }
  await recoverDirectory(directory).catch(() => undefined);
}

async function mountLives(): Promise<boolean> {
  if ((await startTimeOf(Number(mountPid))) !== Number(mountStart)) {
    return false;
  }
  try {
    const text = await readFile(`/proc/${mountPid}/stat`, 'utf8');
    // A zombie has closed everything; its parent may take its time.
    return !/^[ZX]/.test(text.slice(text.lastIndexOf(') ') + 2));
  } catch {
    return false;
  }
}
