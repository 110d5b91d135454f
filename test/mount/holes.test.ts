/** Holes of flat files: told where nobody can be changing them, and quick to skip in an image of terabytes. */
import { execFile } from 'node:child_process';
import { open } from 'node:fs/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { MiB, mountedImages } from '../helpers/mount.js';

const run = promisify(execFile);
const TiB = 2 ** 40;

/** What lseek(2) answers: for SEEK_DATA (3) or SEEK_HOLE (4) from an offset on; or the errno's name. */
async function seek(file: string, whence: 3 | 4, from: number): Promise<number | string> {
  const program = `
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
try: print(os.lseek(fd, int(sys.argv[3]), int(sys.argv[2])))
except OSError as error: print(errno.errorcode[error.errno])`;
  const { stdout } = await run('python3', ['-c', program, file, String(whence), String(from)]);
  const answer = stdout.trim();
  return /^\d+$/.test(answer) ? Number(answer) : answer;
}

test.serial('data and holes of an image of 8 TiB, and of its snapshot', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * TiB });
  const flat = mount.file('vm1');
  const file = await open(flat, 'r+');
  await file.write(Buffer.alloc(MiB, 7), 0, MiB, 4 * TiB);
  t.is(await seek(flat, 3, 0), 0, 'everything is data while somebody has it open for writing');
  t.is(await seek(flat, 4, 0), 8 * TiB);
  await file.close();
  await mount.write('s', 'vm1', 'snapshot');
  t.is(await seek(mount.control('vm1', 'status'), 3, 0), 'EINVAL', 'of control files nothing is told');
  for (const name of [flat, mount.control('vm1', 'at', 's')]) {
    t.is(await seek(name, 3, 0), 4 * TiB, name);
    t.is(await seek(name, 3, 4 * TiB + 5), 4 * TiB + 5, name);
    t.is(await seek(name, 4, 0), 0, name);
    t.is(await seek(name, 4, 4 * TiB), 4 * TiB + MiB, name);
    t.is(await seek(name, 3, 4 * TiB + MiB), 'ENXIO', name);
    t.is(await seek(name, 4, 4 * TiB + MiB), 4 * TiB + MiB, name);
    t.is(await seek(name, 3, 8 * TiB), 'ENXIO', name);
  }
  // What no look at each of the 8 TiB could do.
  const { stdout } = await run('cp', ['--sparse=always', '-v', flat, `${mount.scratch}/copy`], { timeout: 60_000 });
  t.regex(stdout, /copy/);
  t.is(await seek(`${mount.scratch}/copy`, 3, 0), 4 * TiB);
});
