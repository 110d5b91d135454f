/** A directory for one test, removed when the test ends: on a real disk, or in `parent`. */
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';

import type { ExecutionContext } from 'ava';

export async function scratchDirectory(
  t: ExecutionContext<unknown>,
  parent = tmpdir(),
): Promise<string> {
  const directory = await realpath(await mkdtemp(path.join(parent, 'pcow-test-')));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}
