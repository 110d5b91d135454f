/**
 * A disk that becomes full below a mapping: writers are paused, status shows it, and they continue
 * when there is space.
 */
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { attachedTo, imageOnBase, monitored, monitorReport } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';
import { pcowIn, succeeds } from '../cli/outcome.js';
import { fillDisk, freeDisk, mountSmallDisk } from '../helpers/small-disk.js';

const BLOCK = 65536;
const SIZE = 16 * MiB;

async function stalls(mount: TestMount): Promise<void> {
  for (let tries = 0; tries < 200; ++tries) {
    if (((await monitorReport(mount, 'vm1')).stalled ?? 0) > 0) return;
    await sleep(50);
  }
  throw new Error('nobody waits for space');
}

async function settled(answer: Promise<string>): Promise<boolean> {
  return Promise.race([answer.then(() => true), sleep(300).then(() => false)]);
}

for (const over of ['holes', 'a base'] as const) {
  test.serial(
    `a full disk under writes over ${over}: the writer is paused, then continues, and nothing is lost`,
    async (t) => {
      const mount = await imagesFor(t, {});
      await mountSmallDisk(t, mount.images, 24 * MiB);
      const model = Buffer.alloc(SIZE);
      if (over === 'a base') {
        await imageOnBase(mount, 'vm1', SIZE, (block) => 1 + (block % 200));
        for (let block = 0; block < SIZE / BLOCK; ++block) {
          model.fill(1 + (block % 200), block * BLOCK, (block + 1) * BLOCK);
        }
      } else {
        await Image.create(mount.image('vm1'), { size: SIZE });
      }
      await mount.mount();
      const tool = await monitored(t, await program('map-tool', mount.scratch), [
        mount.file('vm1'),
      ]);
      const write = async (offset: number, length: number, byte: number): Promise<string> => {
        model.fill(byte, offset, offset + length);
        return tool.ask(`write ${offset} ${length} ${byte}`);
      };
      t.is(await write(0, 4 * BLOCK, 201), 'ok');
      t.is(await tool.ask('sync'), 'ok');

      await fillDisk(mount.images, 4 * BLOCK);
      const waiting = write(4 * BLOCK, 60 * BLOCK, 202);
      await stalls(mount);
      t.false(await settled(waiting));
      t.regex(
        await readFile(mount.control('vm1', 'metrics'), 'utf8'),
        /^pcow_stalled\{[^}]*\} 1$/m,
      );
      t.regex(
        await readFile(mount.control('vm1', 'metrics'), 'utf8'),
        /^pcow_disk_free_bytes\{image="vm1"\} \d{1,6}$/m,
      );
      const pcow = pcowIn(mount.scratch);
      t.regex(
        await succeeds(t, pcow('list', 'mnt')),
        /^vm1 .* stalled \(process \d+\): its disk is full or failing$/m,
      );
      t.regex(
        await succeeds(t, pcow('info', 'mnt/vm1')),
        /^state +stalled: process \d+ waits for the disk/m,
      );
      await mount.logged(
        /^\S+Z vm1: process \d+ \(map-tool\) is paused, because the disk of its image is full/m,
      );
      t.deepEqual(
        (await readFile(mount.file('vm1'))).subarray(0, 4 * BLOCK),
        model.subarray(0, 4 * BLOCK),
        'reads go on',
      );

      await freeDisk(mount.images);
      t.is(await waiting, 'ok');
      await eventually(async () => (await monitorReport(mount, 'vm1')).stalled === 0);
      await mount.logged(/^\S+Z vm1: process \d+ \(map-tool\) continues after \d+ s$/m);
      t.is(await tool.ask('sync'), 'ok');
      const dump = path.join(mount.scratch, 'dump');
      t.is(await tool.ask(`dump ${dump}`), 'ok');
      t.true(model.equals(await readFile(dump)), 'the mapping');
      t.true(model.equals(await readFile(mount.file('vm1'))), 'the flat file');

      // A snapshot that finds no space fails, and the writer is not affected.
      await fillDisk(mount.images, 0);
      await t.throwsAsync(mount.write('s', 'vm1', 'snapshot'), { code: 'ENOSPC' });
      t.is((await mount.status('vm1')).lastError?.code, 'PCOW_NO_SPACE', 'as at rest');
      t.is(await write(0, 2 * BLOCK, 203), 'ok', 'what is allocated needs no space');
      await freeDisk(mount.images);
      await mount.write('s', 'vm1', 'snapshot');
      const frozen = Buffer.from(model);
      t.is(await write(100, 3 * BLOCK, 204), 'ok');
      t.true(frozen.equals(await readFile(mount.control('vm1', 'at', 's'))));
      await tool.end();
      await attachedTo(mount, 'vm1', null);
      t.true(model.equals(await readFile(mount.file('vm1'))), 'after the end');
      await mount.unmount();
    },
  );
}

test.serial(
  'a process that waits for space can be killed, and the image goes back to the mount',
  async (t) => {
    const mount = await imagesFor(t, {});
    await mountSmallDisk(t, mount.images, 8 * MiB);
    await Image.create(mount.image('vm1'), { size: SIZE });
    await mount.mount();
    const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await tool.ask(`write 0 ${BLOCK} 5`), 'ok');
    await fillDisk(mount.images, BLOCK);
    tool.ask(`write ${BLOCK} ${4 * MiB} 6`).catch(() => undefined);
    await stalls(mount);
    await tool.end('SIGKILL');
    await attachedTo(mount, 'vm1', null);
    t.true((await readFile(mount.file('vm1'))).subarray(0, BLOCK).equals(Buffer.alloc(BLOCK, 5)));
    await freeDisk(mount.images);
    await writeFile(mount.file('vm1'), Buffer.alloc(BLOCK, 7), { flag: 'r+' });
    t.is((await readFile(mount.file('vm1')))[BLOCK - 1], 7);
  },
);
