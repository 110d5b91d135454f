/** Loop devices use files, but no process shows this use. */
import { readdir } from 'node:fs/promises';

import { textOf } from '../engine/processes.js';

/**
 * "loop device /dev/loop0" for each loop device that uses the path. Paths are compared as text
 * only.
 */
export async function loopDevicesOn(file: string): Promise<string[]> {
  const devices = (await readdir('/sys/block').catch(() => [])).filter((name) =>
    name.startsWith('loop'),
  );
  const found = await Promise.all(
    devices.map(async (name) => {
      const backing = (await textOf(`/sys/block/${name}/loop/backing_file`)).replace(/\n$/, '');
      return backing === file ? [`loop device /dev/${name}`] : [];
    }),
  );
  return found.flat();
}
