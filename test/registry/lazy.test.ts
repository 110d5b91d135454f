/** Lazy images at rest: what is stored of them, and how their pieces are fetched. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import test from 'ava';
import { checkImage, Image } from '../../src/engine/index.js';
import { Fetcher } from '../../src/registry/fetcher.js';
import { pullImage } from '../../src/registry/index.js';
import { sourceOf } from '../../src/registry/lazy-layers.js';
import { encodeTrace, parseTrace } from '../../src/registry/trace.js';
import { pushTrace } from '../../src/registry/trace-store.js';
import { PIECE } from '../../src/registry/piece-index.js';
import { eventually } from '../helpers/eventually.js';
import { pcowProgram } from '../helpers/mounted.js';
import { bench, isSame, MiB, reading, scribble, snapshotsOf, working } from '../stream/images.js';
import { failure, ownCredentials, PLAIN, pushing } from './images.js';
import { countingFront, PIECES, pushedWhole } from './lazy-bench.js';
import { layoutServer, sendRange, startRegistry, startServer } from './servers.js';

/** The number of the block that begins a piece, for blocks of 64 KiB. */
function blockOf(piece: number): number {
  return (piece * PIECE) / 65536;
}

async function fetching<T>(file: string, work: (fetcher: Fetcher, image: Image) => Promise<T>) {
  return working(file, async (image) => {
    const fetcher = await Fetcher.open(image);
    if (fetcher === null) throw new Error(`${file} is not lazy`);
    try {
      return await work(fetcher, image);
    } finally {
      await fetcher.close();
    }
  });
}

/** The id of the layer of a snapshot. */
function idOf(image: Image, snapshot: string): number {
  return image.snapshotInfo(snapshot).id;
}

for (const blockSize of [4096, 65536, 2 * MiB]) {
  test.serial(
    `a lazy image has the snapshots at once, and becomes what was pushed: blocks of ${blockSize}`,
    async (t) => {
      const { at, directory, random } = await bench(t);
      const golden = at('golden');
      await Image.create(golden, { size: 24 * MiB, blockSize });
      await working(golden, async (image) => {
        for (const name of ['v1', 'v2', 'v3']) {
          await scribble(image, random, 40);
          if (name === 'v3') await image.resize(25 * MiB + 4096);
          await image.snapshot(name);
        }
      });
      const reference = `oci:${directory}/layout:v3`;
      const { digest } = await pushing(golden, 'v3', reference, {});
      const lazy = at('lazy');
      const pulled = await pullImage(reference, lazy, { lazy: true });
      t.like(pulled, { digest, snapshot: 'v3', layers: 3, present: 0, made: true });
      t.deepEqual(await snapshotsOf(lazy), await snapshotsOf(golden));
      const remoteBytes = await reading(lazy, (image) => image.remoteBytes());
      t.true(remoteBytes > 0);
      t.is((await checkImage(lazy)).damages, 0);
      t.is((await reading(lazy, sourceOf))?.remote.digest, digest);
      await failure(
        t,
        reading(lazy, (image) => image.read(Buffer.alloc(24 * MiB), 0, 'v1')),
        'PCOW_REMOTE',
        /lazy/,
      );

      const progress: number[] = [];
      await fetching(lazy, (fetcher) =>
        fetcher.prefetch({ onProgress: (done, total) => progress.push(done, total) }),
      );
      t.is(progress.at(-1), progress.at(-2));
      for (const name of ['v1', 'v2', 'v3']) await isSame(t, [golden, name], [lazy, name]);
      t.false((await reading(lazy, (image) => Promise.resolve(image.info()))).lazy);
      const { damages, leaks } = await checkImage(lazy);
      t.deepEqual([damages, leaks], [0, 0]);
      t.is(await reading(lazy, sourceOf), null);
    },
  );
}

test.serial('only pieces that are needed are fetched, once, and neighbours together', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const host = await startRegistry(t);
  await pushedWhole(at('golden'), `${host}/golden:v2`, 2);
  const front = await countingFront(t, host);
  await pullImage(`${front.host}/golden:v2`, at('lazy'), { ...PLAIN, lazy: true });
  t.true(front.bytes < 65536, 'only metadata');
  await fetching(at('lazy'), async (fetcher, image) => {
    const layer = idOf(image, 'v1');
    front.ranges.length = front.bytes = 0;
    // Two readers of one piece, and one of the piece before.
    await Promise.all([
      fetcher.fetch(layer, blockOf(9)),
      fetcher.fetch(layer, blockOf(9) + 1),
      fetcher.fetch(layer, blockOf(8)),
    ]);
    t.is(front.ranges.length, 1);
    t.true(front.bytes < 2.1 * PIECE, `${front.bytes} bytes`);
    const [ours, theirs] = [Buffer.alloc(2 * PIECE), Buffer.alloc(2 * PIECE)];
    await image.read(ours, 8 * PIECE, 'v1');
    await reading(at('golden'), (golden) => golden.read(theirs, 8 * PIECE, 'v1'));
    t.true(ours.equals(theirs));
    // What is here is not fetched again.
    await fetcher.fetch(layer, blockOf(9) + 3);
    t.is(front.ranges.length, 1);

    // A sequential reader: what is fetched ahead of it shares requests.
    for (let piece = 10; piece < PIECES; piece++) await fetcher.fetch(layer, blockOf(piece));
    t.true(front.ranges.length <= 15, `${front.ranges.length} requests`);
  });
});

test.serial(
  'while the registry is away readers wait, and say for what; then they go on',
  async (t) => {
    const { at, directory } = await bench(t);
    await ownCredentials(directory);
    const host = await startRegistry(t);
    await pushedWhole(at('golden'), `${host}/golden:v1`);
    const front = await countingFront(t, host);
    await pullImage(`${front.host}/golden:v1`, at('lazy'), { ...PLAIN, lazy: true });
    front.harm = (_, response) => {
      response.destroy();
      return true;
    };
    await working(at('lazy'), async (image) => {
      const heard: string[] = [];
      const fetcher = (await Fetcher.open(image, {
        onTrouble: ({ message }) => heard.push(message),
        onRecovery: () => heard.push('recovered'),
      }))!;
      const began = new Date();
      const fetched = fetcher.fetch(idOf(image, 'v1'), blockOf(3));
      await eventually(() => Promise.resolve(fetcher.state.waiting?.problem != null));
      const { waiting } = fetcher.state;
      t.like(waiting, { snapshot: 'v1', offset: 3 * PIECE });
      t.true(waiting!.since >= began);
      t.regex(waiting?.problem ?? '', /no answer from localhost/);
      front.harm = null;
      await fetched;
      t.is(fetcher.state.waiting, null);
      t.is(heard.length, 2, heard.join('\n'));
      t.regex(heard[0]!, /no answer from localhost/);
      t.is(heard[1], 'recovered');
      await fetcher.prefetch();
      await fetcher.close();
    });
    await isSame(t, [at('golden'), 'v1'], [at('lazy'), 'v1']);
  },
);

test.serial('a piece that is not what the index says never gets in', async (t) => {
  const { at, directory } = await bench(t);
  const layout = `${directory}/layout`;
  await pushedWhole(at('golden'), `oci:${layout}:v1`);
  let corrupting = true;
  const host = await startServer(
    t,
    layoutServer(layout, ({ kind, request, response, bytes }) => {
      if (!corrupting || kind !== 'blob' || bytes.length < PIECE) return false;
      const other = Buffer.from(bytes);
      other[PIECE + 4096]! ^= 1; // of the second piece
      sendRange(request, response, other);
      return true;
    }),
  );
  await pullImage(`${host}/golden:v1`, at('lazy'), { ...PLAIN, lazy: true });
  await fetching(at('lazy'), async (fetcher, image) => {
    const layer = idOf(image, 'v1');
    const second = fetcher.fetch(layer, blockOf(1));
    // Its neighbour of the same request is sound.
    await Promise.all([fetcher.fetch(layer, blockOf(0)), fetcher.fetch(layer, blockOf(2))]);
    await eventually(() =>
      Promise.resolve(/piece 1 .*digest/.test(fetcher.state.waiting?.problem ?? '')),
    );
    await failure(
      t,
      image.read(Buffer.alloc(4096), PIECE, 'v1').then(() => undefined),
      'PCOW_REMOTE',
      /lazy/,
    );
    await failure(t, fetcher.prefetch({ signal: AbortSignal.timeout(200) }), 'PCOW_CANCELLED', /./);
    corrupting = false;
    await second;
    await fetcher.prefetch();
  });
  await isSame(t, [at('golden'), 'v1'], [at('lazy'), 'v1']);
});

test.serial('a prefetch fails if the registry does, and nothing is lost', async (t) => {
  const { at, directory } = await bench(t);
  const layout = `${directory}/layout`;
  await pushedWhole(at('golden'), `oci:${layout}:v1`);
  let missing = true;
  const host = await startServer(
    t,
    layoutServer(layout, ({ kind, response, bytes }) => {
      if (!missing || kind !== 'blob' || bytes.length < PIECE) return false;
      response.writeHead(404).end();
      return true;
    }),
  );
  await pullImage(`${host}/golden:v1`, at('lazy'), { ...PLAIN, lazy: true });
  await fetching(at('lazy'), async (fetcher) => {
    await failure(t, fetcher.prefetch(), 'PCOW_NOT_FOUND', /does not have the blob/);
    missing = false;
    await fetcher.prefetch();
  });
  await isSame(t, [at('golden'), 'v1'], [at('lazy'), 'v1']);
});

test('a trace is a list of pieces, or nothing', (t) => {
  const touches = [
    { layer: 0, piece: 3 },
    { layer: 999, piece: 0 },
  ];
  t.deepEqual(parseTrace(encodeTrace(touches)), touches);
  for (const text of ['', '[]', '{"version":2,"pieces":[]}', '{"version":1}']) {
    t.is(parseTrace(Buffer.from(text)), null);
  }
  for (const pieces of ['[[0]]', '[[1000,0]]', '[[0,-1]]', '[["0",1]]', '[7]', '[null]']) {
    t.is(parseTrace(Buffer.from(`{"version":1,"pieces":${pieces}}`)), null);
  }
});

test.serial('a trace that is damaged, or of another image, does no harm', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const host = await startRegistry(t);
  const digest = await pushedWhole(at('golden'), `${host}/golden:v1`);
  const manifest = { digest, size: 1 };
  const touches = [
    { layer: 0, piece: 5 },
    { layer: 0, piece: 1_000_000 },
    { layer: 7, piece: 0 },
  ];
  await pushTrace(`${host}/golden:v1`, manifest, touches, PLAIN);
  const front = await countingFront(t, host);
  await pullImage(`${front.host}/golden:v1`, at('lazy'), { ...PLAIN, lazy: true });
  await fetching(at('lazy'), async (fetcher, image) => {
    await fetcher.fetch(idOf(image, 'v1'), blockOf(9));
    await eventually(() => Promise.resolve(front.ranges.length >= 2));
    await fetcher.prefetch();
  });
  await isSame(t, [at('golden'), 'v1'], [at('lazy'), 'v1']);
  // The list of referrers is something else.
  front.harm = ({ url = '' }, response) => {
    if (!url.includes('manifests/sha256-')) return false;
    response.writeHead(200).end('[1, {"artifactType":');
    return true;
  };
  await pullImage(`${front.host}/golden:v1`, at('other'), { ...PLAIN, lazy: true });
  t.deepEqual((await reading(at('other'), sourceOf))?.origin.trace, []);
});

test.serial('a prefetch that is killed goes on where it was', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const host = await startRegistry(t);
  await pushedWhole(at('golden'), `${host}/golden:v1`);
  const front = await countingFront(t, host);
  const lazy = at('lazy');
  await pullImage(`${front.host}/golden:v1`, lazy, { ...PLAIN, lazy: true });
  const whole = await reading(lazy, (image) => image.remoteBytes());
  // The registry answers to a few requests only.
  let answers = 3;
  front.harm = ({ headers }) => headers.range !== undefined && answers-- <= 0;
  const killed = spawn(process.execPath, [pcowProgram, 'prefetch', lazy], { stdio: 'ignore' });
  const ended = once(killed, 'exit');
  const left = () => reading(lazy, (image) => image.remoteBytes());
  await eventually(async () => (await left()) < whole);
  killed.kill('SIGKILL');
  await ended;
  front.harm = null;
  front.bytes = 0;
  const rest = await left();
  const again = spawn(process.execPath, [pcowProgram, 'prefetch', lazy], { stdio: 'ignore' });
  t.deepEqual(await once(again, 'exit'), [0, null]);
  t.true(front.bytes <= 1.01 * rest + 4096, `${front.bytes} bytes for ${rest}`);
  t.false(await reading(lazy, (image) => image.info().lazy));
  await isSame(t, [at('golden'), 'v1'], [lazy, 'v1']);
});
