/**
 * A second mount in one process: its bytes go through JavaScript, and everything except holes
 * works.
 */
import { execFile, fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { open, readFile, stat, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';
import { checkCut, cutSize } from './cut-record.js';

const run = promisify(execFile);

test.serial('two mounts in one process', async (t) => {
  const first = await imagesFor(t, { vm1: MiB });
  const second = await imagesFor(t, { vm1: 4 * MiB });
  t.teardown(async () => {
    child.kill('SIGKILL');
    for (const { point } of [first, second])
      await run('fusermount3', ['-u', '-z', point]).catch(() => undefined);
  });
  const words = [first, second].flatMap(({ images, point }) => [images, point]);
  const child = fork(new URL('two-mounts.js', import.meta.url), words, { silent: true });
  await once(child, 'message');

  const bytes = randomBytes(2 * MiB);
  const file = await open(second.file('vm1'), 'r+');
  await file.write(bytes, 0, bytes.length, 1000);
  await file.sync();
  await file.close();
  const wanted = Buffer.alloc(4 * MiB);
  bytes.copy(wanted, 1000);
  t.true(wanted.equals(await readFile(second.file('vm1'))));
  t.is((await stat(second.file('vm1'))).size, 4 * MiB);
  const control = await open(second.control('vm1', 'delete'), 'r+');
  await t.throwsAsync(control.write('missing'), { code: 'ENOENT' });
  const { buffer, bytesRead } = await control.read(Buffer.alloc(4096), 0, 4096, 0);
  t.regex(buffer.toString('utf8', 0, bytesRead), /^\{.* missing"\}\n$/);
  await control.close();
  await second.write('s', 'vm1', 'snapshot');
  await writeFile(second.file('vm1'), 'changed', { flag: 'r+' });
  t.true(wanted.equals(await readFile(second.control('vm1', 'at', 's'))));
  await second.write('s', 'vm1', 'rollback');
  t.true(wanted.equals(await readFile(second.file('vm1'))));
  t.regex(
    await readFile(second.control('vm1', 'metrics'), 'utf8'),
    /^pcow_written_bytes_total\{image="vm1"\} [1-9]/m,
  );

  // A snapshot of a mapped file waits for requests that this very process serves.
  const shape = { threads: 2, pages: 50 };
  const writer = await program('cut-writer', second.scratch);
  const writing = await Conversation.start(
    t,
    writer,
    second.file('vm1'),
    String(shape.threads),
    String(shape.pages),
  );
  for (const name of ['c1', 'c2', 'c3']) {
    await second.write(name, 'vm1', 'snapshot');
    const cut = await readFile(second.control('vm1', 'at', name));
    t.notThrows(() => checkCut(cut.subarray(0, cutSize(shape)), shape));
  }
  await writing.end('SIGKILL');
  await writeFile(first.file('vm1'), 'the first one', { flag: 'r+' });

  const ended = once(child, 'exit');
  child.send('end');
  t.deepEqual(await ended, [0, null]);
  for (const mount of [first, second]) {
    const image = await Image.open(mount.image('vm1'));
    t.true(image.info().clean);
    await image.close();
  }
});
