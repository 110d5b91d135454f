/** When a receiver's receipt is valid, if another process opens the image in between. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { Image, receiptOf } from '../../src/engine/index.js';
import { readReceipt, type Receipt, writeReceipt } from '../../src/stream/receipt.js';
import { abandonReceiving, receive, resumeTokenOf } from '../../src/stream/receive.js';
import { bench, isSame, MiB, reading, scribble, streamOf, working } from './images.js';

const HOLD = fileURLToPath(new URL('../engine/hold-image.js', import.meta.url));

/** `copy` has s0 and a part of s1 of `source`. */
async function broken(t: ExecutionContext) {
  const given = await bench(t);
  const { at, random } = given;
  await Image.create(at('source'), { size: 16 * MiB });
  await working(at('source'), async (image) => {
    for (const name of ['s0', 's1']) {
      await scribble(image, random, 20);
      await image.snapshot(name);
    }
  });
  await receive(Readable.from([await streamOf(at('source'), 's0', null)]), at('copy'));
  const increment = await streamOf(at('source'), 's1', 's0');
  await t.throwsAsync(receive(Readable.from([increment.subarray(0, -100)]), at('copy')), {
    code: 'PCOW_IO',
  });
  return { ...given, increment };
}

async function receiptAt(file: string): Promise<Receipt> {
  const info = await reading(file, (image) => image.info());
  return { ...(await readReceipt(file, info))!, generation: info.generation };
}

/** A process that has the image open for writing. */
async function otherWriter(t: ExecutionContext, file: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, [HOLD, file], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  return child;
}

async function killed(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await once(child, 'exit');
}

test('a receiver was about to open the image, and another writer opened it first and was killed', async (t) => {
  const { at, increment } = await broken(t);
  const receipt = await receiptAt(at('copy'));
  const other = await otherWriter(t, at('copy'));
  await writeReceipt(at('copy'), { ...receipt, opening: { pid: process.pid, startTime: 1 } });
  await t.throwsAsync(receive(Readable.from([increment]), at('copy')), { code: 'PCOW_LOCKED' });
  await killed(other);
  t.is(await resumeTokenOf(at('copy')), null);
  t.is(await abandonReceiving(at('copy')), null);
  await receive(Readable.from([increment]), at('copy'), { force: true });
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});

test('a receiver was killed after it had opened the image, before it could record that', async (t) => {
  const { at, increment } = await broken(t);
  const receipt = await receiptAt(at('copy'));
  const itself = await otherWriter(t, at('copy'));
  const opener = await reading(at('copy'), (image) => image.info().opener);
  t.is(opener?.pid, itself.pid);
  await writeReceipt(at('copy'), { ...receipt, opening: opener! });
  await killed(itself);
  t.is((await resumeTokenOf(at('copy')))?.offset, receipt.offset);
  await receive(Readable.from([increment]), at('copy'));
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});

test('a damaged receipt is not valid', async (t) => {
  const { at, increment } = await broken(t);
  const receipt = await receiptAt(at('copy'));
  const begin = { ...receipt.begin, size: 7 };
  for (const text of [
    '',
    '{',
    'null',
    '[]',
    '7',
    JSON.stringify({ ...receipt, begin }),
    JSON.stringify({ ...receipt, offset: -1 }),
  ]) {
    await writeFile(receiptOf(at('copy')), text);
    t.is(await resumeTokenOf(at('copy')), null, text);
  }
  await receive(Readable.from([increment]), at('copy'), { force: true });
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});
