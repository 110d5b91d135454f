/** A command closes everything that it opens, even after an error. */
import { readdir, readlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Readable } from 'node:stream';
import test from 'ava';
import { pcowProgram } from '../../cli/pcow-program.js';
import { importImage, receive } from '../../src/index.js';
import { eventually } from '../helpers/eventually.js';
import { scratchDirectory } from '../helpers/scratch.js';

async function isOpen(file: string): Promise<boolean> {
  const descriptors = await readdir('/proc/self/fd');
  const files = await Promise.all(
    descriptors.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => null)),
  );
  return files.includes(file);
}

test('a stream that is not read to its end is closed, also in the library', async (t) => {
  const scratch = await scratchDirectory(t);
  for (const work of [importImage, receive]) {
    let closed = false;
    const bytes = (function* () {
      try {
        for (;;) yield Buffer.alloc(1 << 16, 'x');
      } finally {
        closed = true;
      }
    })();
    await t.throwsAsync(work(Readable.from(bytes), path.join(scratch, 'new.pcow')), {
      code: 'PCOW_NOT_AN_IMAGE',
    });
    await eventually(() => Promise.resolve(closed));
  }
});

test('import closes a file that it has not read to its end', async (t) => {
  const scratch = await scratchDirectory(t);
  const file = path.join(scratch, 'damaged');
  await writeFile(file, Buffer.alloc(4 << 20, 'x'));
  const program = await pcowProgram('import');
  const words = ['import', file, path.join(scratch, 'new.pcow')];
  await t.throwsAsync(program.parseAsync(words, { from: 'user' }), { code: 'PCOW_NOT_AN_IMAGE' });
  await eventually(async () => !(await isOpen(file)));
  t.pass();
});
