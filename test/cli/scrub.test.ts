/**
 * `pcow scrub`: its output and exit codes; and that damaged bytes are not returned by reads. The
 * rest is in native/test/checksums_test.cc.
 */
import { open } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor } from '../helpers/mount.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, type Outcome, pcowIn, succeeds } from './outcome.js';

const BLOCK = 65536;

interface Report {
  outcome: string;
  verified: number;
  damages: number;
  findings: {
    structure: string;
    snapshot: string;
    place: number;
    offset: number;
    length: number;
  }[];
  layers: { snapshot: string; covered: number; missing: number }[];
}

/**
 * Its blocks 3 and 4 are in a snapshot. Returns the offset of the first byte of block 3 in the
 * file.
 */
async function fill(file: string): Promise<number> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(2 * BLOCK, 7), 3 * BLOCK);
  await image.snapshot('one');
  let place = -1;
  for await (const extent of image.map({ snapshot: 'one' })) {
    if (extent.kind === 'data') place = extent.place ?? -1;
  }
  await image.close();
  return place;
}

async function flip(file: string, at: number): Promise<void> {
  const handle = await open(file, 'r+');
  const byte = Buffer.alloc(1);
  await handle.read(byte, 0, 1, at);
  await handle.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, at);
  await handle.close();
}

async function damaged(t: ExecutionContext<unknown>, outcome: Promise<Outcome>): Promise<string> {
  const { exit, stdout, stderr } = await outcome;
  t.is(exit, 13, stderr);
  return stdout;
}

function reportOf(stdout: string): Report {
  return JSON.parse(stdout) as Report;
}

async function first(
  t: ExecutionContext<unknown>,
  file: string,
  block: number,
): Promise<number | undefined> {
  const handle = await open(file, 'r');
  t.teardown(() => handle.close().catch(() => undefined));
  const { buffer } = await handle.read(Buffer.alloc(4096), 0, 4096, block * BLOCK);
  await handle.close();
  return buffer[0];
}

test('a damaged block is reported, with exit code 13; without checksums it is not noticed', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const file = path.join(directory, 'vm1.pcow');
  await succeeds(t, pcow('create', 'vm1', '1M'));
  t.regex(await succeeds(t, pcow('scrub', 'vm1')), /no snapshots/);
  const place = await fill(file);
  t.regex(
    await succeeds(t, pcow('scrub', 'vm1')),
    /without checksums: one 128 KiB; “pcow scrub vm1 --add”/,
  );
  t.regex(await succeeds(t, pcow('scrub', 'vm1', '--add')), /checksums made of 128 KiB/);
  const before = reportOf(await succeeds(t, pcow('scrub', 'vm1', '--json')));
  t.like(before, { outcome: 'sound', verified: 2 * BLOCK, damages: 0, findings: [] });
  t.like(before.layers, [{ snapshot: 'one', covered: 2 * BLOCK, missing: 0 }]);

  await flip(file, place + 5000);
  const after = reportOf(await damaged(t, pcow('scrub', 'vm1', '--json')));
  t.like(after, { outcome: 'damaged', verified: BLOCK, damages: 1 });
  t.like(after.findings, [
    { structure: 'block', snapshot: 'one', place, offset: 3 * BLOCK, length: BLOCK },
  ]);
  t.regex(await damaged(t, pcow('scrub', 'vm1')), /bytes 196608 to 262143 of snapshot one/);
  await succeeds(t, pcow('check', 'vm1'));
  await fails(t, pcow('export', 'vm1', 'vm1.raw'), 9, /do not match their checksum/);

  await fails(t, pcow('scrub', 'vm1', '--add', '--remove'), 2);
  await succeeds(t, pcow('scrub', 'vm1', '--remove'));
  await succeeds(t, pcow('export', 'vm1', 'vm1.raw'));
});

test.serial(
  'in a mount a damaged block reads as EIO, and the others as before; checksums are made and removed by command',
  async (t) => {
    const mount = await imagesFor(t, { vm1: 1 << 20 });
    const pcow = pcowIn(mount.images);
    const place = await fill(mount.image('vm1'));
    await mount.mount();
    await succeeds(t, pcow('scrub', mount.file('vm1'), '--add'));
    await mount.unmount();
    await flip(mount.image('vm1'), place + 5000);
    await mount.mount();
    for (const file of [mount.file('vm1'), mount.control('vm1', 'at', 'one')]) {
      await t.throwsAsync(first(t, file, 3), { code: 'EIO' });
      t.is(await first(t, file, 4), 7);
    }
    await damaged(t, pcow('scrub', mount.file('vm1')));
    await succeeds(t, pcow('scrub', mount.file('vm1'), '--remove'));
    t.is(await first(t, mount.file('vm1'), 3), 7);
    await t.throwsAsync(mount.write('all', 'vm1', 'checksums'), { code: 'EINVAL' });
  },
);

test.serial(
  'mount --checksums makes them after each snapshot, and ends with the mount',
  async (t) => {
    const mount = await imagesFor(t, { vm1: 64 << 20 });
    const pcow = pcowIn(mount.images);
    await mount.mount('--checksums');
    const layers = async () =>
      reportOf(await succeeds(t, pcow('scrub', mount.image('vm1'), '--json'))).layers;
    const handle = await open(mount.file('vm1'), 'r+');
    await handle.write(Buffer.alloc(8 << 20, 7), 0, 8 << 20, 0);
    await handle.close();
    await mount.write('one', 'vm1', 'snapshot');
    await eventually(async () =>
      (await layers()).every(({ covered, missing }) => covered === 8 << 20 && missing === 0),
    );
    await mount.write('two', 'vm1', 'snapshot');
    await mount.unmount();
    await succeeds(t, pcow('check', 'vm1'));
  },
);
