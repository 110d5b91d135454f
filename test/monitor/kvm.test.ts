/**
 * Monitored memory as the memory of a KVM guest: accesses of the virtual processor are handled like
 * those of a thread.
 */
import { open } from 'node:fs/promises';

import path from 'node:path';

import test from 'ava';

import { imagesFor } from '../helpers/mount.js';
import { imageOnBase, monitored } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';

const BLOCK = 65536;
const BLOCKS = 8;
const BASE_WORD = 0x0707;

/** The first word of each block. */
async function words(file: string): Promise<string> {
  const handle = await open(file, 'r');
  try {
    const found: number[] = [];
    for (let block = 0; block < BLOCKS; ++block) {
      const { buffer } = await handle.read(Buffer.alloc(2), 0, 2, block * BLOCK);
      found.push(buffer.readUInt16LE());
    }
    return found.join(' ');
  } finally {
    await handle.close();
  }
}

/** Its value after this many passes: every second block is from the base, the others are holes. */
function expected(passes: number): string {
  return Array.from(
    { length: BLOCKS },
    (_, block) => (block % 2 === 0 ? BASE_WORD : 0) + passes,
  ).join(' ');
}

test.serial(
  'a KVM guest reads, expands and copies on write, before and after a live snapshot',
  async (t) => {
    const mount = await imagesFor(t, {});
    await imageOnBase(mount, 'vm1', BLOCK * BLOCKS * 2, (block) => (block % 2 === 0 ? 7 : 0));
    await mount.mount();
    const guest = await monitored(t, await program('kvm-guest', mount.scratch), [
      mount.file('vm1'),
    ]);
    if (guest.greeting === 'no kvm') {
      t.log('there is no KVM on this machine: nothing to see');
      t.pass();
      return;
    }
    t.is(await guest.ask('pass'), expected(1));
    t.is(await guest.ask('pass'), expected(2));
    await mount.write('frozen', 'vm1', 'snapshot');
    t.is(await guest.ask('pass'), expected(3));
    t.is(await words(path.join(mount.point, '.pcow/vm1/at/frozen')), expected(2));
    await guest.end();
    t.is(await words(mount.file('vm1')), expected(3));
  },
);
