/**
 * Lazy images with a limit: what was not used for long is given back, and fetched again. Nobody
 * reads anything else than what was pushed.
 */
import { open, readFile, stat } from 'node:fs/promises';

import test from 'ava';

import { checkImage } from '../../src/engine/check.js';
import { Image } from '../../src/engine/index.js';
import { Fetcher } from '../../src/registry/fetcher.js';
import { pullLazily } from '../../src/registry/lazy-image.js';
import { PIECE } from '../../src/registry/piece-index.js';
import { fails, pcowIn, succeeds } from '../cli/outcome.js';
import { imagesFor, type TestMount } from '../helpers/mount.js';
import { monitored } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { PLAIN } from '../registry/images.js';
import { countingFront, PIECES, pushedWhole } from '../registry/lazy-bench.js';
import { startRegistry } from '../registry/servers.js';
import { MiB, reading } from '../stream/images.js';

const LIMIT = 2 * MiB;

interface LazyStatus {
  remoteBytes: number;
  limit: number | null;
  givenBackBytes: number;
}

/** null: it is not lazy any more. */
async function lazyStatus(mount: TestMount): Promise<LazyStatus | null> {
  const text = await readFile(mount.control('golden', 'status'), 'utf8');
  return (JSON.parse(text) as { lazy: LazyStatus | null }).lazy;
}

async function read(file: string, piece: number): Promise<Buffer> {
  const handle = await open(file);
  try {
    return (await handle.read(Buffer.alloc(4096), 0, 4096, piece * PIECE)).buffer;
  } finally {
    await handle.close();
  }
}

for (const store of [[], ['--clean-store', '64M']]) {
  const how = store.length === 0 ? '' : ', with shared memory';
  test.serial(`a base keeps no more than its limit, whoever reads it${how}`, async (t) => {
    const mount = await imagesFor(t, {});
    const host = await startRegistry(t);
    const pushed = `${mount.scratch}/pushed.pcow`;
    await pushedWhole(pushed, `${host}/golden:v1`, 2);
    const original = await reading(pushed, async (image) => {
      const bytes = Buffer.alloc(64 * MiB);
      await image.read(bytes, 0, 'v2');
      return bytes;
    });
    const front = await countingFront(t, host);
    const golden = mount.image('golden');
    await pullLazily(`${front.host}/golden:v1`, golden, { ...PLAIN, limit: LIMIT });
    for (const name of ['vm1', 'vm2'])
      await Image.create(mount.image(name), { base: { path: golden, snapshot: 'v2' } });
    // The reserve, and what the filesystem rounds up.
    const most = (await stat(golden)).blocks * 512 + LIMIT + MiB / 2;
    await mount.mount(...store);

    // One reads a flat file, and one has mapped another.
    const tool = await program('map-tool', mount.scratch);
    const guest = await monitored(t, tool, [mount.file('vm2')]);
    const dump = `${mount.scratch}/dump`;
    const [bytes, answer] = await Promise.all([
      readFile(mount.file('vm1')),
      guest.ask(`dump ${dump}`),
    ]);
    t.is(answer, 'ok');
    t.true(bytes.equals(original) && (await readFile(dump)).equals(original));
    const lazy = await lazyStatus(mount);
    t.like(lazy, { limit: LIMIT });
    t.true(lazy!.remoteBytes >= PIECES * PIECE - LIMIT, `${lazy!.remoteBytes} are remote`);
    t.true(lazy!.givenBackBytes > 0);
    t.true((await stat(golden)).blocks * 512 <= most);
    const metrics = await readFile(mount.control('golden', 'metrics'), 'utf8');
    t.regex(metrics, /pcow_given_back_bytes_total\{image="golden"\} [1-9]/);

    // A store into the middle of a page that was given back needs the rest of it.
    t.is(await guest.ask(`write 5000 1 77`), 'ok');
    t.is(await guest.ask(`read 5001`), String(original[5001]));
    await guest.end();

    // The next mount goes on.
    await mount.unmount();
    await mount.mount(...store);
    for (let piece = 0; piece < PIECES; piece += 3) {
      const found = await read(mount.control('golden', 'at', 'v2'), piece);
      t.true(found.equals(original.subarray(piece * PIECE, piece * PIECE + 4096)));
    }
    await mount.unmount();
    for (const name of ['golden', 'vm1', 'vm2']) {
      const { damages, leaks } = await checkImage(mount.image(name));
      t.is(damages + leaks, 0, name);
    }
    t.true((await stat(golden)).blocks * 512 <= most);
  });
}

test.serial('what was read again is not given back', async (t) => {
  const scratch = await scratchDirectory(t);
  const layout = `oci:${scratch}/layout:v1`;
  await pushedWhole(`${scratch}/pushed.pcow`, layout);
  await pullLazily(layout, `${scratch}/golden.pcow`, { limit: LIMIT });
  const image = await Image.open(`${scratch}/golden.pcow`, { write: true });
  const fetcher = await Fetcher.open(image);
  const layer = image.layerOf('v1');
  const isHere = async (piece: number) => {
    const { ranges } = await image.remoteRanges(layer, (piece * PIECE) / 65536);
    return ranges[0]?.block !== (piece * PIECE) / 65536;
  };
  for (let piece = 0; piece < PIECES; piece++) {
    await fetcher!.fetch(layer, (piece * PIECE) / 65536);
    // Another opening of the same process.
    if (piece % 3 === 0)
      await reading(image.info().path, (other) => other.read(Buffer.alloc(1), 0, 'v1'));
    t.true(await isHere(0), `piece 0 was given back before piece ${piece}`);
  }
  t.false(await isHere(1));
  await fetcher!.close();
  await image.close();
});

test.serial('with a limit not everything is prefetched; without it, it is', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  await pushedWhole(`${mount.scratch}/pushed.pcow`, `${host}/golden:v1`);
  const golden = mount.image('golden');
  await pullLazily(`${host}/golden:v1`, golden, { ...PLAIN, limit: LIMIT });
  const pcow = pcowIn(mount.scratch);
  t.regex(await succeeds(t, pcow('info', 'images/golden')), /at most 2 MiB are kept here/);
  const info = JSON.parse(await succeeds(t, pcow('info', 'images/golden', '--json'))) as object;
  t.like(info, { limit: LIMIT, lazy: true });
  // The same base is not used under another limit.
  const create = ['create', 'images/vm1', '--plain-http', '--base', `${host}/golden:v1`];
  await fails(t, pcow(...create, '--limit', '64M'), 5, /is there already, and has another limit/);
  await fails(t, pcow(...create, '--limit', '1M'), 3, /at least 64 MiB/);
  await fails(
    t,
    pcow('create', 'images/vm1', '1M', '--limit', '64M'),
    2,
    /for a base in a registry/,
  );
  await succeeds(t, pcow(...create));

  await fails(t, pcow('prefetch', 'images/golden'), 3, /cannot keep all of them/);
  await mount.mount();
  await fails(t, pcow('prefetch', 'images/vm1'), 3, /cannot keep all of them/);
  await succeeds(t, pcow('prefetch', '--no-limit', 'images/vm1'));
  t.is(await lazyStatus(mount), null);
  await mount.unmount();
  t.false((await reading(golden, (image) => Promise.resolve(image.info()))).lazy);
});
