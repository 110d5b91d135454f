/**
 * The kernel's page cache of a flat file, which survives a change of its writer.
 *
 * If the answer to an open does not set FOPEN_KEEP_CACHE, the kernel drops every page of the file,
 * including mapped ones (native/addon/fuse_operations.cc decides that). A helper process opens the
 * file, because the open waits for pages that are being read or written. If a thread of the mount
 * waited like that when the mount is killed, the mount could not end.
 */
import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { sentenceOf } from '../failure.js';
import { log } from '../log.js';

const run = promisify(execFile);

/** Milliseconds. */
const LIMIT = 10_000;

/**
 * `file`: the flat file in the mount. Never rejects: on failure, readers with old descriptors see
 * older bytes, and the log says so.
 */
export async function dropCachedPages(file: string): Promise<void> {
  const over = new AbortController();
  const { signal } = over;
  try {
    // A helper that is stuck in the kernel cannot be killed, so the limit does not wait for its
    // end.
    const helper = run('sh', ['-c', ': < "$1"', 'sh', file], {
      cwd: '/',
      signal,
      killSignal: 'SIGKILL',
    });
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
