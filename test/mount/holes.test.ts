/**
 * Holes of flat files: reported if no process can be changing them, and quick to skip in an image
 * of terabytes.
 */
import { execFile } from 'node:child_process';
import { open } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { MiB, mountedImages } from '../helpers/mount.js';

const run = promisify(execFile);
const TiB = 2 ** 40;

type Question = readonly ['data' | 'hole', number];

/**
 * The result of lseek(2) with SEEK_DATA or SEEK_HOLE from an offset on: an offset, or the name of
 * the errno.
 */
async function seek(file: string, ...questions: Question[]): Promise<(number | string)[]> {
  const program = `
import errno, json, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
def seek(what, offset):
    try: return os.lseek(fd, offset, os.SEEK_DATA if what == 'data' else os.SEEK_HOLE)
    except OSError as error: return errno.errorcode[error.errno]
print(json.dumps([seek(*it) for it in json.loads(sys.argv[2])]))`;
  const { stdout } = await run('python3', ['-c', program, file, JSON.stringify(questions)]);
  return JSON.parse(stdout) as (number | string)[];
}

test.serial('data and holes of an image of 8 TiB, and of its snapshot', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * TiB });
  const flat = mount.file('vm1');
  const file = await open(flat, 'r+');
  await file.write(Buffer.alloc(MiB, 7), 0, MiB, 4 * TiB);
  // While a process has it open for writing, everything is data.
  t.deepEqual(await seek(flat, ['data', 0], ['hole', 0]), [0, 8 * TiB]);
  await file.close();
  await mount.write('s', 'vm1', 'snapshot');
  // Control files have no holes; and the kernel asks again.
  t.deepEqual(await seek(mount.control('vm1', 'status'), ['data', 0]), ['EINVAL']);
  const questions: [Question, number | string][] = [
    [['data', 0], 4 * TiB],
    [['data', 4 * TiB + 5], 4 * TiB + 5],
    [['hole', 0], 0],
    [['hole', 4 * TiB], 4 * TiB + MiB],
    [['data', 4 * TiB + MiB], 'ENXIO'],
    [['hole', 4 * TiB + MiB], 4 * TiB + MiB],
    [['data', 8 * TiB], 'ENXIO'],
  ];
  for (const name of [flat, mount.control('vm1', 'at', 's')]) {
    t.deepEqual(
      await seek(name, ...questions.map(([question]) => question)),
      questions.map(([, answer]) => answer),
      name,
    );
  }
  // Too fast for a read of all 8 TiB.
  const copy = path.join(mount.scratch, 'copy');
  await run('cp', ['--sparse=always', flat, copy], { timeout: 600_000 });
  t.deepEqual(await seek(copy, ['data', 0]), [4 * TiB]);
});
