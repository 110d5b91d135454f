/**
 * A helper process of a killed mount must not keep its connection alive: otherwise users of the
 * mount would wait forever.
 */
import { mkdir, readdir, readFile, readlink } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';

const O_CLOEXEC = 0o2000000;

test.serial('child processes do not inherit the descriptor of /dev/fuse', async (t) => {
  const scratch = await scratchDirectory(t);
  await mkdir(path.join(scratch, 'images'));
  await mkdir(path.join(scratch, 'mnt'));
  const { pid } = await mounted(t, path.join(scratch, 'images'), path.join(scratch, 'mnt'));
  const descriptors = `/proc/${pid}/fd`;
  const flags: number[] = [];
  for (const fd of await readdir(descriptors)) {
    if ((await readlink(path.join(descriptors, fd)).catch(() => '')) !== '/dev/fuse') continue;
    const text = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8');
    flags.push(parseInt(/^flags:\s+(\d+)$/m.exec(text)?.[1] ?? '0', 8));
  }
  t.true(flags.length > 0);
  t.true(flags.every((flag) => (flag & O_CLOEXEC) !== 0));
});
