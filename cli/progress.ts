/** Long work: a bar on a terminal, nothing elsewhere; Ctrl-C stops it and leaves the image sound. */
import { SingleBar } from 'cli-progress';
import type { LongOptions } from '../src/engine/index.js';

/** Runs `work` with a bar called `label`, and with a signal that the first Ctrl-C aborts (PCOW_CANCELLED). */
export async function withProgress<T>(label: string, work: (options: LongOptions) => Promise<T>): Promise<T> {
  const interruption = new AbortController();
  const interrupt = () => {
    interruption.abort();
  };
  const bar = process.stderr.isTTY
    ? new SingleBar({
        format: `${label} {bar} {percentage}%  {eta_formatted} left`,
        clearOnComplete: true,
        stream: process.stderr,
      })
    : null;
  let started = false;
  const onProgress = (done: number, total: number) => {
    if (!started) {
      bar?.start(total, done);
      started = true;
    }
    bar?.update(done);
  };
  process.once('SIGINT', interrupt);
  try {
    return await work({ signal: interruption.signal, onProgress });
  } finally {
    process.off('SIGINT', interrupt);
    if (started) {
      bar?.stop();
    }
  }
}
