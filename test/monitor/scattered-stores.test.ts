/**
 * Durable stores here and there in a mapped image: they need not write megabytes each
 * (docs/monitor.md, "Scattered durable stores").
 */
import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB } from '../helpers/mount.js';
import { monitored, monitorReport } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { bytesWrittenTo, mountDisk } from '../helpers/small-disk.js';

const SIZE = 16 * MiB;
const STORES = 200;
/** A page, and as much again for the filesystem's journal. */
const MOST_PER_STORE = 2 * 4096;

test.serial(
  'scattered durable stores write pages, not megabytes, and nothing is lost',
  async (t) => {
    const disk = await mountDisk(t, await scratchDirectory(t), 'ext4', 64 * MiB);
    const mount = await imagesFor(t, {}, disk.directory);
    await Image.create(mount.image('vm1'), { size: SIZE });
    await mount.mount();
    const tool = await monitored(t, await program('scattered-stores', mount.scratch), [
      mount.file('vm1'),
    ]);
    await tool.ask('fill');
    // Each round tries what the one before could not, while something else was in the way.
    let perStore = Infinity;
    for (let round = 0; round < 30 && perStore > MOST_PER_STORE; ++round) {
      const before = await bytesWrittenTo(disk);
      await tool.ask(`store ${STORES}`);
      perStore = ((await bytesWrittenTo(disk)) - before) / STORES;
    }
    const { demotions = 0 } = await monitorReport(mount, 'vm1');
    t.log(`${Math.round(perStore)} bytes to the disk for each store, ${demotions} demotions`);
    t.true(perStore <= MOST_PER_STORE, `${perStore} bytes to the disk for each store of 64 bytes`);
    t.is(await tool.ask('check'), '0');
    await mount.write('s', 'vm1', 'snapshot');
    await tool.ask(`store ${STORES}`);
    t.is(await tool.ask('check'), '0');
    await tool.end();
  },
);
