/**
 * Every Linux system call for memory, on a monitored mapping: the same result as for a file on
 * tmpfs, or the documented refusal.
 */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { monitorPrefix } from '../helpers/monitored.js';
import { imagesFor, MiB } from '../helpers/mount.js';
import { program } from '../helpers/program.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const FILLED = Buffer.alloc(MiB, 0x55);

/**
 * docs/monitor.md, "System calls": refused with this errno. Nothing in the mapping changes then.
 */
const REFUSED: Record<string, string> = {
  'mmap locked': 'EAGAIN',
  mlock: 'ENOMEM',
  'mlock2 on fault': 'ENOMEM',
  'mremap with an old length of nothing': 'EINVAL',
  'mremap to another place': 'ENOMEM',
  remap_file_pages: 'EINVAL',
};
const UNCHANGED =
  ' | loads 55 55 55 55 55 55 55 | stores 66 66 66 66 66 66 66 | file 66 66 66 66 66 66 66';

async function linesOf(t: ExecutionContext<unknown>, words: string[]): Promise<string[]> {
  const [command = '', ...rest] = words;
  const { stdout } = await run(command, rest);
  const lines = stdout.trimEnd().split('\n');
  t.is(lines.pop(), 'end');
  return lines;
}

test.serial(
  'every system call for memory works as for a file on tmpfs, or is refused as documented',
  async (t) => {
    const memory = await scratchDirectory(t, '/dev/shm');
    const plain = path.join(memory, 'plain');
    await writeFile(plain, FILLED);
    await writeFile(path.join(memory, 'other'), FILLED);
    const mount = await imagesFor(t, { base: MiB });
    const base = await Image.open(mount.image('base'), { write: true });
    await base.write(FILLED, 0);
    await base.snapshot('s');
    await base.close();
    await Image.create(mount.image('vm1'), { base: { path: mount.image('base'), snapshot: 's' } });
    await mount.mount();

    const calls = await program('mapping-calls', mount.scratch);
    const expected = await linesOf(t, [calls, plain, path.join(memory, 'other')]);
    await writeFile(path.join(memory, 'other'), FILLED);
    const seen = await linesOf(t, [
      ...monitorPrefix(),
      calls,
      mount.file('vm1'),
      path.join(memory, 'other'),
    ]);
    t.is(seen.length, expected.length);
    for (const [at, line] of expected.entries()) {
      const name = line.slice(0, line.indexOf(':'));
      const refusal = REFUSED[name];
      t.is(seen[at], refusal === undefined ? line : `${name}: ${refusal}${UNCHANGED}`);
    }
  },
);
