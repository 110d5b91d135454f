/** Many concurrent operations, and processes and threads that end in the middle of them. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';

import test, { type ExecutionContext } from 'ava';

import { Image, PcowError } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

const MiB = 1 << 20;

async function opened(t: ExecutionContext, size = 4 * MiB): Promise<Image> {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, { size });
  return Image.open(file, { write: true });
}

test('reads, writes, discards, syncs and snapshots side by side', async (t) => {
  const image = await opened(t);
  const work: Promise<unknown>[] = [];
  for (let i = 0; i < 400; ++i) {
    const offset = i * 8192;
    work.push(image.write(Buffer.alloc(8192, 1 + (i % 255)), offset));
    work.push(image.read(Buffer.alloc(8192), offset));
    if (i % 40 === 0) work.push(image.sync());
    if (i % 100 === 0) work.push(image.snapshot(`s${i}`));
  }
  await Promise.all(work);
  const bytes = Buffer.alloc(4 * MiB);
  await image.read(bytes, 0);
  for (let i = 0; i < 400; ++i) {
    const expected = Buffer.alloc(8192, 1 + (i % 255));
    t.true(bytes.subarray(i * 8192, (i + 1) * 8192).equals(expected), `part ${i}`);
  }
  t.is(image.snapshotNames().length, 4);
  await image.close();
});

test('a close waits for earlier operations, and refuses later ones', async (t) => {
  const image = await opened(t);
  const file = image.info().path;
  const before = Array.from({ length: 100 }, (_, i) =>
    image.write(Buffer.alloc(4096, i), i * 4096),
  );
  before.push(image.sync().then(() => 0));
  const closed = image.close();
  const after = [image.read(Buffer.alloc(1), 0), image.write(Buffer.alloc(1), 0), image.sync()];
  await t.notThrowsAsync(Promise.all(before));
  for (const late of after)
    await t.throwsAsync(late, { instanceOf: PcowError, code: 'PCOW_CLOSED' });
  await closed;
  const again = await Image.open(file, { write: true });
  t.true((await Image.open(file).then((reader) => reader.info())).size === 4 * MiB);
  const byte = Buffer.alloc(1);
  await again.read(byte, 99 * 4096);
  t.is(byte[0], 99);
  await again.close();
});

test('hundreds of images opened and closed at once', async (t) => {
  const directory = await scratchDirectory(t);
  await Promise.all(
    Array.from({ length: 100 }, async (_, i) => {
      const file = path.join(directory, `${i}.pcow`);
      await Image.create(file, { size: MiB });
      const image = await Image.open(file, { write: true });
      const writes = [image.write(Buffer.from([i]), 0), image.sync()];
      await image.close();
      await Promise.all(writes);
    }),
  );
  t.pass();
});

test('of many attempts to open the same file for writing, one succeeds', async (t) => {
  const image = await opened(t);
  const file = image.info().path;
  await image.close();
  const attempts = await Promise.allSettled(
    Array.from({ length: 20 }, () => Image.open(file, { write: true })),
  );
  const winners = attempts.filter((attempt) => attempt.status === 'fulfilled');
  t.is(winners.length, 1);
  for (const attempt of attempts) {
    if (attempt.status === 'rejected') t.like(attempt.reason, { code: 'PCOW_LOCKED' });
  }
  await winners[0]?.value.close();
});

test('slow work on one image does not delay reads of another', async (t) => {
  const slow = await opened(t);
  const quick = await opened(t);
  // Many more long operations than libuv has threads.
  let left = 60;
  const long = Array.from({ length: left }, async (_, i) => {
    await slow.write(Buffer.alloc(65536, i), i * 65536);
    await slow.snapshot(`s${i}`);
    --left;
  });
  await quick.read(Buffer.alloc(4096), 0);
  t.true(left > 0, 'the read came back only after all the snapshots');
  await Promise.all(long);
  await slow.close();
  await quick.close();
});

test('an image without references is closed by the garbage collector', async (t) => {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, { size: MiB });
  const child = spawn(process.execPath, ['--expose-gc', program('forget-image.js'), file], {
    stdio: 'inherit',
  });
  t.deepEqual(await once(child, 'exit'), [0, null]);
});

test('a process can end with an image open, and its writes are kept', async (t) => {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, { size: MiB });
  const child = spawn(process.execPath, [program('leave-image-open.js'), file], {
    stdio: 'inherit',
  });
  t.deepEqual(await once(child, 'exit'), [0, null]);
  const image = await Image.open(file);
  const byte = Buffer.alloc(1);
  await image.read(byte, 12345);
  t.is(byte[0], 42);
  await image.close();
});

test('worker threads that are terminated in the middle of their work do no harm', async (t) => {
  const directory = await scratchDirectory(t);
  const own = await opened(t);
  for (let round = 0; round < 8; ++round) {
    const file = path.join(directory, `${round}.pcow`);
    await Image.create(file, { size: 4 * MiB });
    const worker = new Worker(program('busy-worker.js'), { workerData: file });
    await once(worker, 'message');
    const terminated = worker.terminate();
    await own.write(Buffer.from([round]), round);
    await terminated;
    // Its image was closed together with its environment.
    const again = await Image.open(file, { write: true });
    await again.close();
  }
  await own.close();
  t.pass();
});

function program(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}
