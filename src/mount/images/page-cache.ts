/**
 * The kernel's page cache of a flat file, which outlives a change of its writer.
 *
 * An opening whose answer does not say FOPEN_KEEP_CACHE makes the kernel drop every page of the file, also those that are mapped
 * (native/addon/fuse_operations.cc decides that). A helper process does the opening, since it waits for pages that are being read
 * or written: a thread of the mount that waited so, in the moment in which the mount is killed, would keep the mount's end from happening.
 */
import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { sentenceOf } from '../failure.js';
import { log } from '../log.js';

const run = promisify(execFile);

/** Milliseconds. */
const LIMIT = 10_000;

/** `file`: the flat file in the mount. Never rejects: readers of old descriptors see older bytes then, and the log says so. */
export async function dropCachedPages(file: string): Promise<void> {
  const over = new AbortController();
  const { signal } = over;
  try {
    // A helper that is stuck in the kernel can't be killed, so the limit does not wait for its end.
    const helper = run('sh', ['-c', ': < "$1"', 'sh', file], { cwd: '/', signal, killSignal: 'SIGKILL' });
    helper.catch(() => undefined);
    const limit = sleep(LIMIT, undefined, { signal, ref: false }).then(() => {
      throw new Error(`it took longer than ${LIMIT / 1000} s`);
    });
    await Promise.race([helper, limit]);
  } catch (error) {
    log(`the kernel may keep old pages of ${file}: ${sentenceOf(error)}`);
  } finally {
    over.abort();
  }
}
