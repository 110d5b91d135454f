/** Lazy images in a mount: what readers need is fetched, and they wait for it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile, rm, writeFile } from 'node:fs/promises';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { pullImage } from '../../src/registry/index.js';
import { PIECE } from '../../src/registry/piece-index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, type TestMount } from '../helpers/mount.js';
import { connectionOf } from '../helpers/mounted.js';
import { fails, pcowIn, succeeds } from '../cli/outcome.js';
import { ownCredentials, PLAIN, skopeo } from '../registry/images.js';
import { countingFront, PIECES, pushedWhole } from '../registry/lazy-bench.js';
import { layoutServer, sendRange, startRegistry, startServer } from '../registry/servers.js';
import { isSame, MiB, reading } from '../stream/images.js';

interface LazyStatus {
  lazy: {
    remoteBytes: number;
    reference: string | null;
    waiting: { since: string; offset: number; snapshot: string; problem: string | null } | null;
  } | null;
  working: { command: string; done: number; total: number } | null;
}

async function lazyStatus(mount: TestMount, name: string): Promise<LazyStatus> {
  return JSON.parse(await readFile(mount.control(name, 'status'), 'utf8')) as LazyStatus;
}

/** `pushed` outside of the mount, and in it a lazy `golden` from `host`, with clones on it. */
async function lazily(mount: TestMount, host: string, clones: string[]) {
  const golden = mount.image('golden');
  await pullImage(`${host}/golden:v1`, golden, { ...PLAIN, lazy: true });
  for (const name of clones)
    await Image.create(mount.image(name), { base: { path: golden, snapshot: 'v1' } });
}

async function read(file: string, offset: number, length: number): Promise<Buffer> {
  const handle = await open(file);
  try {
    const bytes = Buffer.alloc(length);
    const { bytesRead } = await handle.read(bytes, 0, length, offset);
    return bytes.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}

function original(pushed: string, offset: number, length: number): Promise<Buffer> {
  return reading(pushed, async (image) => {
    const bytes = Buffer.alloc(length);
    await image.read(bytes, offset, 'v1');
    return bytes;
  });
}

test.serial('a guest reads what it needs, and little more is fetched', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  const pushed = `${mount.scratch}/pushed.pcow`;
  await pushedWhole(pushed, `${host}/golden:v1`);
  const front = await countingFront(t, host);
  await lazily(mount, front.host, ['vm1', 'vm2']);
  await mount.mount();
  front.ranges.length = front.bytes = 0;

  // Two guests that need the same piece.
  const [one, two] = await Promise.all(
    ['vm1', 'vm2'].map((name) => read(mount.file(name), 20 * PIECE, 65536)),
  );
  const expected = await original(pushed, 20 * PIECE, 65536);
  t.true(one!.equals(expected) && two!.equals(expected));
  t.is(front.ranges.length, 1);
  t.true(front.bytes < 1.1 * PIECE, `${front.bytes} bytes`);

  // A write into the middle of a sub-block needs the rest of it.
  const offset = 10 * PIECE + 100;
  const handle = await open(mount.file('vm1'), 'r+');
  await handle.write(Buffer.from('written'), 0, 7, offset);
  await handle.close();
  const around = await original(pushed, 10 * PIECE, 4096);
  around.write('written', 100);
  t.true((await read(mount.file('vm1'), 10 * PIECE, 4096)).equals(around));
  const { lazy } = await lazyStatus(mount, 'golden');
  t.is(lazy?.waiting, null);
  t.true(lazy!.remoteBytes > (PIECES - 6) * PIECE && lazy!.remoteBytes < PIECES * PIECE);
  const metrics = await readFile(mount.control('golden', 'metrics'), 'utf8');
  t.regex(metrics, /pcow_remote_bytes\{image="golden"\} [1-9]/);
  t.regex(metrics, /pcow_fetched_bytes_total\{image="golden"\} [1-9]/);

  await mount.write('now', 'golden', 'prefetch');
  await mount.logged(/golden: everything is here/);
  t.is((await lazyStatus(mount, 'golden')).lazy, null);
  front.harm = (_, response) => {
    response.destroy();
    return true;
  };
  t.true((await readFile(mount.file('vm2'))).equals(await original(pushed, 0, 64 * MiB)));
  await mount.unmount();
  await isSame(t, [pushed, 'v1'], [mount.image('golden'), 'v1']);
});

test.serial('readers wait while the registry is away, whatever happens to the mount', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  const pushed = `${mount.scratch}/pushed.pcow`;
  await pushedWhole(pushed, `${host}/golden:v1`);
  const front = await countingFront(t, host);
  await lazily(mount, front.host, ['vm1']);
  front.harm = (_, response) => {
    response.destroy();
    return true;
  };
  await mount.mount();
  const waits = async () => (await lazyStatus(mount, 'golden')).lazy?.waiting?.problem != null;
  const lost = read(mount.file('vm1'), 3 * PIECE, 4096);
  await eventually(waits);
  const { lazy } = await lazyStatus(mount, 'golden');
  t.like(lazy?.waiting, { snapshot: 'v1', offset: 3 * PIECE });
  t.regex(lazy?.waiting?.problem ?? '', /no answer from localhost/);
  t.regex(lazy?.reference ?? '', /golden:v1@sha256:/);
  await mount.logged(/golden: readers wait .*no answer from localhost/);
  // What needs no bytes goes on.
  await mount.write('vm2 v1', 'golden', 'clone');
  await mount.write('s1', 'vm1', 'snapshot');
  t.true((await read(mount.file('vm2'), 40 * MiB, 4096)).equals(Buffer.alloc(4096)));

  // The mount is killed in the middle; the next one fetches what its readers need.
  await mount.kill();
  await t.throwsAsync(lost);
  await mount.mount();
  const kept = read(mount.file('vm1'), 3 * PIECE, 4096);
  await eventually(waits);
  front.harm = null;
  t.true((await kept).equals(await original(pushed, 3 * PIECE, 4096)));
  await mount.logged(/golden: fetching goes on/);
  t.is((await lazyStatus(mount, 'golden')).lazy?.waiting, null);
  await mount.write('now', 'golden', 'prefetch');
  await mount.unmount();
  await isSame(t, [pushed, 'v1'], [mount.image('vm2'), null]);
});

test.serial('a reader that waits can be killed, and so can the mount be ended', async (t) => {
  const mount = await imagesFor(t, {});
  const layout = `${mount.scratch}/layout`;
  await pushedWhole(`${mount.scratch}/pushed.pcow`, `oci:${layout}:v1`);
  const host = await startServer(
    t,
    // It never answers about data.
    layoutServer(layout, ({ kind, bytes }) => kind === 'blob' && bytes.length > PIECE),
  );
  await lazily(mount, host, ['vm1']);
  await mount.mount();
  const waits = async () => (await lazyStatus(mount, 'golden')).lazy?.waiting != null;
  const cat = spawn('cat', [mount.file('vm1')], { stdio: 'ignore' });
  const killed = once(cat, 'exit');
  await eventually(waits);
  cat.kill('SIGTERM');
  t.deepEqual(await killed, [null, 'SIGTERM']);
  // Nothing uses the mount any more; the fetch that nobody needs does not keep it.
  await mount.unmount();

  await mount.mount();
  const lost = read(mount.file('vm1'), PIECE, 4096);
  await eventually(waits);
  const connection = await connectionOf(mount.point);
  const ended = once(mount.daemon, 'close');
  await writeFile(`/sys/fs/fuse/connections/${connection ?? ''}/abort`, '1');
  await t.throwsAsync(lost);
  await ended;
});

test.serial('wrong bytes never reach a guest: it waits until the right ones come', async (t) => {
  const mount = await imagesFor(t, {});
  const pushed = `${mount.scratch}/pushed.pcow`;
  const layout = `${mount.scratch}/layout`;
  await pushedWhole(pushed, `oci:${layout}:v1`);
  let corrupting = true;
  const host = await startServer(
    t,
    layoutServer(layout, ({ kind, request, response, bytes }) => {
      if (!corrupting || kind !== 'blob' || bytes.length < PIECE) return false;
      sendRange(request, response, Buffer.alloc(bytes.length, 7));
      return true;
    }),
  );
  await lazily(mount, host, ['vm1']);
  await mount.mount();
  const waiting = read(mount.file('vm1'), 0, MiB);
  await eventually(async () =>
    ((await lazyStatus(mount, 'golden')).lazy?.waiting?.problem ?? '').includes(
      'does not match its digest',
    ),
  );
  corrupting = false;
  t.true((await waiting).equals(await original(pushed, 0, MiB)));
});

test.serial(
  'what one guest needed is fetched first for the next, if its trace was pushed',
  async (t) => {
    const mount = await imagesFor(t, {});
    const host = await startRegistry(t);
    const pushed = `${mount.scratch}/pushed.pcow`;
    await ownCredentials(mount.scratch);
    const digest = await pushedWhole(pushed, `${host}/golden:v1`);
    const front = await countingFront(t, host);
    await lazily(mount, front.host, ['vm1']);
    const pcow = pcowIn(mount.scratch);
    await fails(t, pcow('trace', 'images/vm1'), 11, /only a mount records a trace/);
    await mount.mount();
    await fails(t, pcow('trace', 'images/vm1'), 4, /nothing of golden has been fetched/);
    const needed = [20, 3, 11];
    for (const piece of needed) await read(mount.file('vm1'), piece * PIECE, 4096);
    const text = JSON.parse(await readFile(mount.control('golden', 'trace'), 'utf8')) as object;
    t.deepEqual(text, { version: 1, pieces: needed.map((piece) => [0, piece]) });
    t.regex(await succeeds(t, pcow('trace', 'images/vm1')), /pushed a trace of golden: 3 pieces/);
    await succeeds(t, pcow('trace', 'images/vm1'));
    const list = await skopeo(
      ...['inspect', '--raw', '--tls-verify=false'],
      `docker://${host}/golden:${digest.replace(':', '-')}`,
    );
    const { manifests } = JSON.parse(list) as { manifests: { artifactType: string }[] };
    t.deepEqual(
      manifests.map(({ artifactType }) => artifactType),
      ['application/vnd.pcow.trace.v1'],
    );

    await mount.unmount();
    await rm(mount.image('vm1'));
    await rm(mount.image('golden'));
    await lazily(mount, front.host, ['vm2']);
    await mount.mount();
    front.ranges.length = 0;
    const left = async () => (await lazyStatus(mount, 'golden')).lazy?.remoteBytes;
    await read(mount.file('vm2'), 20 * PIECE, 4096);
    await eventually(async () => (await left()) === (PIECES - needed.length) * PIECE);
    for (const piece of needed) {
      const bytes = await read(mount.file('vm2'), piece * PIECE, 4096);
      t.true(bytes.equals(await original(pushed, piece * PIECE, 4096)));
      // The kernel may have read others ahead. A frame is a little longer than its piece.
      const requests = front.ranges.filter((it) => Math.floor(parseInt(it, 10) / PIECE) === piece);
      t.is(requests.length, 1);
    }
  },
);

test.serial('a prefetch in a mount can be stopped, and shows its progress', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  await pushedWhole(`${mount.scratch}/pushed.pcow`, `${host}/golden:v1`);
  const front = await countingFront(t, host);
  await lazily(mount, front.host, []);
  // It answers to two requests, and is silent then.
  let answers = 2;
  front.harm = ({ headers }) => headers.range !== undefined && answers-- <= 0;
  await mount.mount();
  const stopped = t.throwsAsync(mount.write('now', 'golden', 'prefetch'), { code: 'ECANCELED' });
  await eventually(async () => ((await lazyStatus(mount, 'golden')).working?.done ?? 0) > 0);
  const { working } = await lazyStatus(mount, 'golden');
  t.like(working, { command: 'prefetch', total: PIECES * PIECE });
  await mount.write('prefetch', 'golden', 'cancel');
  await stopped;
  t.is((await lazyStatus(mount, 'golden')).working, null);
});
