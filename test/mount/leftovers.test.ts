/**
 * A mount that runs for months: images and snapshots that have come and gone leave no descriptor
 * and no mapping of an image file.
 */
import { open, readdir, readFile, stat } from 'node:fs/promises';

import test, { type ExecutionContext } from 'ava';

import { eventually } from '../helpers/eventually.js';
import { MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

/** Rounds before the first measurement, and after it. */
const WARM = 5;
const ROUNDS = 20;

interface Footprint {
  descriptors: number;
  /** The number of image files. */
  mappings: number;
}

async function footprintOf({ daemon: { pid = 0 } }: TestMount): Promise<Footprint> {
  const [descriptors, maps] = await Promise.all([readdir(`/proc/${pid}/fd`), readFile(`/proc/${pid}/maps`, 'utf8')]);
  return { descriptors: descriptors.length, mappings: maps.match(/\.pcow(?: \(deleted\))?$/gm)?.length ?? 0 };
}

/**
 * Repeats it, so that the mount has everything it needs, and then repeats it more often: nothing
 * must be left of that.
 */
async function leavesNothing(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  round: (number: number) => Promise<void>,
): Promise<void> {
  t.timeout(1_200_000);
  let number = 0;
  while (number < WARM) await round(number++);
  const before = await footprintOf(mount);
  t.true(before.descriptors > 0 && before.mappings > 0);
  while (number < WARM + ROUNDS) await round(number++);
  // The last one is released a moment after the end of the round.
  await eventually(async () => {
    const after = await footprintOf(mount);
    return after.descriptors <= before.descriptors && after.mappings <= before.mappings;
  });
  t.pass();
}

test.serial('a process that attaches and releases an image again and again', async (t) => {
  const mount = await mountedImages(t, { vm1: 64 * MiB });
  const it = await Conversation.start(t, await program('fake-monitor', mount.scratch), mount.file('vm1'));
  await leavesNothing(t, mount, async () => {
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
    t.is(await it.ask('let-go'), 'released 0 ');
    t.is(await it.ask('fsync'), 'ok');
  });
});

test.serial('snapshots that are taken, read and deleted', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await leavesNothing(t, mount, async (number) => {
    await mount.write(`s${number}`, 'vm1', 'snapshot');
    const file = await open(mount.control('vm1', 'at', `s${number}`));
    await file.close();
    await mount.write(`s${number}`, 'vm1', 'delete');
  });
});

test.serial('clones that are made, read and removed', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await mount.write('s', 'vm1', 'snapshot');
  await leavesNothing(t, mount, async (number) => {
    await mount.write(`c${number} s`, 'vm1', 'clone');
    const file = await open(mount.file(`c${number}`), 'r+');
    await file.write('x');
    await file.close();
    await stat(mount.control(`c${number}`, 'status'));
    await mount.write(`c${number}`, `c${number}`, 'remove');
  });
});
