/**
 * The program of the watchdog (watchdog.ts): DIRECTORY PID START-TIME. It reads from its standard
 * input which processes are stopped. When the input ends, it continues those that are still
 * stopped. If the mount did not end properly, it makes durable what the mount has written.
 */
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { startTimeOf } from '../../engine/processes.js';

/** Milliseconds between two checks whether the killed mount has released its images. */
const PAUSE = 20;

const [directory = '', mountPid = '', mountStart = ''] = process.argv.slice(2);
const stopped = new Map<number, number>();
let orderly = false;

// Any of these may be sent to a whole process group to end the mount. This process must outlive the
// mount.
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
// The mount may have been killed before this process began: then nothing reads its output.
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
    // A later process may have the same pid: do not continue it.
    if ((await startTimeOf(pid)) === startTime) {
      try {
        process.kill(pid, 'SIGCONT');
      } catch {
        // it has just ended
      }
    }
  }
}

/** Failures cannot be reported here. The next process that opens the image gets the same error. */
async function recover(): Promise<void> {
  // Load the engine only when it is needed.
  const { recoverDirectory } = await import('../../engine/index.js');
  // The pipe ends before a dying process has closed its last file, and the locks are released after
  // that.
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
    // A zombie has closed everything; its parent may not have waited for it yet.
    return !/^[ZX]/.test(text.slice(text.lastIndexOf(') ') + 2));
  } catch {
    return false;
  }
}
