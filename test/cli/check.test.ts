/**
 * `pcow check`: its output, its exit codes, and what it does not touch. Every kind of damage is in
 * native/test/check_test.cc and repair_test.cc.
 */
import { open, readFile, stat, truncate } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { mountedImages } from '../helpers/mount.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, type Outcome, pcowIn, succeeds } from './outcome.js';

interface Report {
  outcome: string;
  damages: number;
  repaired: number;
  inUse: boolean;
  findings: {
    structure: string;
    place: number;
    snapshot: string | null;
    offset: number | null;
    repaired: boolean;
  }[];
}

const MAGIC_OF_SLOT = 4096;
const BLOCK = 65536;

/**
 * An image with one block in a snapshot, whose entry is then changed to point behind the end of the
 * file.
 */
async function damagedImage(
  t: ExecutionContext<unknown>,
): Promise<{ directory: string; file: string; entry: number }> {
  const directory = await scratchDirectory(t);
  const file = path.join(directory, 'vm1.pcow');
  await Image.create(file, { size: 2 ** 20 });
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(BLOCK, 7), 3 * BLOCK);
  await image.snapshot('one');
  await image.close();
  const bytes = await readFile(file);
  const word = Buffer.from('ffffffff', 'hex');
  // The only entry of the image: all sub-blocks written and durable.
  const entry = bytes.indexOf(word, 2 * BLOCK);
  t.is(entry % BLOCK, 3 * 8);
  await overwrite(file, entry + 4, Buffer.from([0, 0, 0xff, 0x3f]));
  return { directory, file, entry };
}

async function overwrite(file: string, at: number, bytes: Uint8Array): Promise<void> {
  const handle = await open(file, 'r+');
  await handle.write(bytes, 0, bytes.length, at);
  await handle.close();
}

function reportOf({ stdout }: Outcome): Report {
  return JSON.parse(stdout) as Report;
}

test('an intact image is reported as sound, with its properties', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm1', '1G'));
  await succeeds(t, pcow('snapshot', 'vm1@one'));
  t.is(
    await succeeds(t, pcow('check', 'vm1')),
    `${directory}/vm1.pcow is sound: 1 GiB, one snapshot, 0 bytes of data\n`,
  );
  const report = JSON.parse(await succeeds(t, pcow('check', 'vm1', '--json'))) as Report;
  t.like(report, { outcome: 'sound', damages: 0, inUse: false, findings: [] });
});

test('damage is reported with file, snapshot and offset, and is not touched without --repair', async (t) => {
  const { directory, file, entry } = await damagedImage(t);
  const pcow = pcowIn(directory);
  const before = await readFile(file);
  const text = await pcow('check', 'vm1');
  t.is(text.exit, 13);
  t.true(
    text.stdout.includes(
      `at byte ${entry} of the file, bytes ${3 * BLOCK} to ${4 * BLOCK - 1} of snapshot one`,
    ),
  );
  t.regex(text.stdout, /points at block \d+ of the file, which lies beyond its end/);
  const json = await pcow('check', 'vm1', '--json');
  t.is(json.exit, 13);
  const report = reportOf(json);
  t.is(report.outcome, 'damaged');
  t.like(report.findings[0], {
    structure: 'entry',
    place: entry,
    snapshot: 'one',
    offset: 3 * BLOCK,
  });
  t.true(before.equals(await readFile(file)));
});

test('--repair repairs it, keeps the block that it cannot assign, and says so', async (t) => {
  const { directory, file } = await damagedImage(t);
  const pcow = pcowIn(directory);
  const { exit, stdout: text } = await pcow('check', 'vm1', '--repair');
  t.is(exit, 15);
  t.regex(text, /^repaired: the entry of block 3 of snapshot one/m);
  t.regex(text, /has a sound structure again/);
  t.true(text.includes(`${file}.lost.index`));
  t.deepEqual(await readFile(`${file}.lost`), Buffer.alloc(BLOCK, 7));
  const index = (await readFile(`${file}.lost.index`, 'utf8')).trim().split('\n');
  t.like(JSON.parse(index.at(-1) ?? ''), {
    at: 0,
    length: BLOCK,
    why: 'no entry refers to this block',
  });
  await succeeds(t, pcow('check', 'vm1'));
});

test('an image that cannot be opened can be checked', async (t) => {
  const { directory, file } = await damagedImage(t);
  const pcow = pcowIn(directory);
  await overwrite(file, 0, Buffer.alloc(100));
  await overwrite(file, MAGIC_OF_SLOT, Buffer.alloc(100));
  await fails(t, pcow('info', 'vm1'), 3, /not a Pcow image/);
  const { exit, stdout } = await pcow('check', 'vm1', '--repair');
  t.is(exit, 13);
  t.regex(stdout, /superblock slot 0 has no magic number/);
  t.regex(stdout, /restore the image from a copy/);
});

test('data in free space has its own exit code, and --repair gives the space back', async (t) => {
  const directory = await scratchDirectory(t);
  const file = path.join(directory, 'vm1.pcow');
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm1', '1M'));
  const { size } = await stat(file);
  await overwrite(file, Math.ceil(size / BLOCK) * BLOCK, Buffer.alloc(BLOCK, 1));
  const { exit, stdout } = await pcow('check', 'vm1');
  t.is(exit, 14);
  t.regex(stdout, /^leak: block \d+ of the file belongs to no layer, but contains data/m);
  // Some entry may have referred to that block.
  const repaired = await pcow('check', 'vm1', '--repair');
  t.is(repaired.exit, 15);
  t.regex(repaired.stdout, /^lost: 64 KiB of data that belongs to an unknown part of the image$/m);
  await succeeds(t, pcow('check', 'vm1'));
});

test('a repair that cannot restore data reports the snapshots and the ranges', async (t) => {
  const directory = await scratchDirectory(t);
  const file = path.join(directory, 'vm1.pcow');
  const pcow = pcowIn(directory);
  await Image.create(file, { size: 2 ** 20 });
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(4 * BLOCK, 7), 2 * BLOCK);
  await image.snapshot('one');
  await image.snapshot('two');
  // The present content holds a part of that itself, and the tables are before it.
  await image.write(Buffer.alloc(BLOCK, 8), 3 * BLOCK);
  await image.close();
  const bytes = await readFile(file);
  const data = bytes.indexOf(Buffer.alloc(BLOCK, 7));
  t.true(data > 0);
  const last = Math.ceil(bytes.length / BLOCK) * BLOCK;
  // The four blocks move behind the end, which is then truncated.
  await truncate(file, last + 4 * BLOCK);
  for (let block = 0; block < 4; block++) {
    const entry = entryOf(bytes, data / BLOCK + block);
    await overwrite(file, entry + 4, numberOf(last / BLOCK + block));
    await overwrite(file, data + block * BLOCK, Buffer.alloc(BLOCK));
  }
  await truncate(file, last);
  const repaired = await pcow('check', 'vm1', '--repair');
  t.is(repaired.exit, 15);
  const lines = repaired.stdout.trim().split('\n').slice(-4);
  t.deepEqual(lines.slice(0, 3), [
    'lost: 256 KiB of snapshot one: bytes 131072 to 393215',
    'lost: 256 KiB of snapshot two: bytes 131072 to 393215',
    'lost: 192 KiB of the image: bytes 131072 to 196607, 262144 to 393215',
  ]);
  t.regex(lines[3] ?? '', /not all of its data: restore what is named above from a copy$/);
  t.deepEqual(
    await succeeds(t, pcow('check', 'vm1')).then((text) => text.split(':')[0]),
    `${file} is sound`,
  );
});

function numberOf(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** The offset of the entry of a whole block in that block of the file. */
function entryOf(bytes: Buffer, block: number): number {
  return bytes.indexOf(Buffer.concat([Buffer.from('ffffffff', 'hex'), numberOf(block)]));
}

test('a check that cannot be completed has the code of the error that stopped it', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await fails(t, pcow('check', 'vm1'), 4, /there is no image/);
});

test.serial('mounted images can be checked while in use, and repaired only at rest', async (t) => {
  const mount = await mountedImages(t, { vm1: 2 ** 20 });
  const pcow = pcowIn(mount.images);
  await overwrite(mount.file('vm1'), 0, Buffer.alloc(BLOCK, 1));
  const report = reportOf(await pcow('check', 'vm1', '--json'));
  t.like(report, { outcome: 'sound', inUse: true });
  await fails(t, pcow('check', 'vm1', '--repair'), 6, /is mounted on/, /pcow umount/);
});
