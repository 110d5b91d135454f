/** The size of an image costs no time. Compares ratios, so that a slow machine does not matter. */
import { stat } from 'node:fs/promises';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';

const GiB = 1024 * MiB;
const SIZES = { small: GiB, large: 16 * 1024 * GiB };
type Name = keyof typeof SIZES;
const NAMES: Name[] = ['small', 'large'];
const ROUNDS = 7;

async function milliseconds(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

/** The medians of `work` for each image, measured in turns. */
async function medians(
  work: (name: Name, round: number) => Promise<unknown>,
): Promise<Record<Name, number>> {
  const times: Record<Name, number[]> = { small: [], large: [] };
  for (let round = 0; round < ROUNDS; ++round) {
    for (const name of NAMES) times[name].push(await milliseconds(() => work(name, round)));
  }
  const median = (list: number[]) => list.sort((a, b) => a - b)[Math.floor(list.length / 2)] ?? 0;
  return { small: median(times.small), large: median(times.large) };
}

function report(t: TestMount['t'], what: string, { small, large }: Record<Name, number>): void {
  t.log(`${what}: ${small.toFixed(1)} ms at 1 GiB, ${large.toFixed(1)} ms at 16 TiB`);
  t.true(large < 2 * small + 10, what);
}

test.serial('16 TiB is created, mounted and snapshotted as fast as 1 GiB', async (t) => {
  const mount = await imagesFor(t, {});
  report(
    t,
    'create',
    await medians((name, round) =>
      Image.create(mount.image(`${name}${round}`), { size: SIZES[name] }),
    ),
  );
  await mount.mount();
  report(t, 'first look', await medians((name, round) => stat(mount.file(`${name}${round}`))));
  report(
    t,
    'first snapshot',
    await medians((name, round) => mount.write('s', `${name}${round}`, 'snapshot')),
  );
  report(
    t,
    'next snapshot',
    await medians((name, round) => mount.write(`n${round}`, `${name}0`, 'snapshot')),
  );
  report(
    t,
    'rollback',
    await medians((name, round) => mount.write(`n${round}`, `${name}0`, 'rollback')),
  );
  report(
    t,
    'delete',
    await medians((name, round) => mount.write(`n${round}`, `${name}0`, 'delete')),
  );
  t.is((await stat(mount.file('large0'))).size, SIZES.large);
  await mount.unmount();
  t.true(
    (await stat(mount.image('large1'))).blocks * 512 < MiB,
    'an empty image takes less than a megabyte',
  );

  const directories: Record<Name, TestMount> = {
    small: await imagesFor(t, { vm1: SIZES.small }),
    large: await imagesFor(t, { vm1: SIZES.large }),
  };
  report(
    t,
    'mount, look, unmount',
    await medians(async (name) => {
      await directories[name].mount();
      await stat(directories[name].file('vm1'));
      await directories[name].unmount();
    }),
  );
});
