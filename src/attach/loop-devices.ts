/** Loop devices: users of a file that no process shows. */
import { readdir } from 'node:fs/promises';

import { textOf } from '../engine/processes.js';

/** "loop device /dev/loop0" for each that stands on a path. The path is compared as text only. */
export async function loopDevicesOn(file: string): Promise<string[]> {
  const devices = (await readdir('/sys/block').catch(() => [])).filter((name) => name.startsWith('loop'));
  const found = await Promise.all(
    devices.map(async (name) => {
      const backing = (await textOf(`/sys/block/${name}/loop/backing_file`)).replace(/\n$/, '');
      return backing === file ? [`loop device /dev/${name}`] : [];
    }),
  );
  return found.flat();
}
