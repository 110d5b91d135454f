/** Processes that have mapped images on a lazy base: their faults wait for what must be fetched. */
import { readFile } from 'node:fs/promises';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { pullImage } from '../../src/registry/index.js';
import { PIECE } from '../../src/registry/piece-index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, type TestMount } from '../helpers/mount.js';
import { attachedTo, monitored, monitorReport } from '../helpers/monitored.js';
import { Conversation, program } from '../helpers/program.js';
import { PLAIN } from '../registry/images.js';
import { countingFront, PIECES, pushedWhole } from '../registry/lazy-bench.js';
import { startRegistry } from '../registry/servers.js';
import { MiB, reading } from '../stream/images.js';

/** Images on the lazy base golden, and what it holds. */
async function lazily(mount: TestMount, host: string, clones: string[]): Promise<Buffer> {
  const pushed = `${mount.scratch}/pushed.pcow`;
  const original = await reading(pushed, async (image) => {
    const bytes = Buffer.alloc(64 * MiB);
    await image.read(bytes, 0, 'v1');
    return bytes;
  });
  const golden = mount.image('golden');
  await pullImage(`${host}/golden:v1`, golden, { ...PLAIN, lazy: true });
  for (const name of clones)
    await Image.create(mount.image(name), { base: { path: golden, snapshot: 'v1' } });
  return original;
}

for (const store of [[], ['--clean-store', '64M']]) {
  const how = store.length === 0 ? '' : ', with shared memory';
  test.serial(`guests fault in what they read, once for all of them${how}`, async (t) => {
    const mount = await imagesFor(t, {});
    const host = await startRegistry(t);
    await pushedWhole(`${mount.scratch}/pushed.pcow`, `${host}/golden:v1`);
    const front = await countingFront(t, host);
    const original = await lazily(mount, front.host, ['vm1', 'vm2']);
    await mount.mount(...store);
    const tool = await program('map-tool', mount.scratch);
    const [one, two] = await Promise.all([
      monitored(t, tool, [mount.file('vm1')]),
      monitored(t, tool, [mount.file('vm2')]),
    ]);
    front.ranges.length = front.bytes = 0;
    const offset = 20 * PIECE + 5000;
    const byte = String(original[offset]);
    t.deepEqual(await Promise.all([one, two].map((it) => it.ask(`read ${offset}`))), [byte, byte]);
    t.is(front.ranges.length, 1);
    t.true(front.bytes < 1.1 * PIECE, `${front.bytes} bytes`);

    // A store into the middle of a page that has not arrived.
    const written = 10 * PIECE + 100;
    t.is(await one.ask(`write ${written} 1 77`), 'ok');
    original[written] = 77;
    // Everything, by a sequential reader.
    const dump = `${mount.scratch}/dump`;
    t.is(await one.ask(`dump ${dump}`), 'ok');
    t.true((await readFile(dump)).equals(original));
    const report = await monitorReport(mount, 'vm1');
    t.is(report.fetching, 0);
    t.is(report.stalls, 0);
    await Promise.all([one.end(), two.end()]);
  });
}

test.serial('a guest waits while the registry is away, and outlives the mount', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  await pushedWhole(`${mount.scratch}/pushed.pcow`, `${host}/golden:v1`);
  const front = await countingFront(t, host);
  const original = await lazily(mount, front.host, ['vm1']);
  await mount.mount();
  const guest = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
  front.harm = (_, response) => {
    response.destroy();
    return true;
  };
  const offset = 3 * PIECE;
  const answer = guest.ask(`read ${offset}`);
  const waits = async () => (await monitorReport(mount, 'vm1')).fetching === 1;
  await eventually(waits);
  t.is((await monitorReport(mount, 'vm1')).stalled, 0);
  t.regex(await readFile(mount.control('vm1', 'metrics'), 'utf8'), /^pcow_fetching\{[^}]*\} 1$/m);
  await mount.logged(/golden: readers wait/);
  // What needs no bytes goes on.
  await mount.write('s1', 'vm1', 'snapshot');

  await mount.kill();
  await mount.mount();
  await attachedTo(mount, 'vm1', guest.pid);
  await eventually(waits);
  await mount.logged(/golden: readers wait/);
  front.harm = null;
  t.is(await answer, String(original[offset]));
  t.is(await guest.ask(`read ${offset + PIECE}`), String(original[offset + PIECE]));
  await guest.end();
  await attachedTo(mount, 'vm1', null);
});

test.serial('what a process says that it needs leads to no other image', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  await pushedWhole(`${mount.scratch}/pushed.pcow`, `${host}/golden:v1`);
  await lazily(mount, host, ['vm1']);
  const outside = `${mount.scratch}/outside.pcow`;
  await pullImage(`${host}/golden:v1`, outside, { ...PLAIN, lazy: true });
  const facts = (file: string) =>
    reading(file, async (image) => ({
      uuid: image.info().uuid,
      layer: image.layerOf('v1'),
      remote: await image.remoteBytes(),
    }));
  const golden = await facts(mount.image('golden'));
  const other = await facts(outside);
  await mount.mount();
  const fake = await program('fake-monitor', mount.scratch);
  const it = await Conversation.start(t, fake, mount.file('vm1'));
  t.is(await it.ask('attach w'), `attached ${mount.image('vm1')} ${mount.image('golden')}`);
  t.is(await it.ask('next'), 'may-fetch 0 ');
  t.is(await it.ask('done '), 'ok');
  const asked = async (text: string) => {
    t.is(await it.ask(`fetch 7 ${text}`), 'ok');
    return it.ask('next');
  };
  t.regex(await asked('nonsense'), /^fetched 7 .*cannot exist/);
  t.regex(
    await asked(`${golden.uuid} ${golden.layer + 7} 1 ${mount.image('golden')}`),
    /^fetched 7 .*no such layer/,
  );
  t.regex(await asked(`${other.uuid} ${other.layer} 1 ${outside}`), /^fetched 7 /);
  t.is((await facts(outside)).remote, other.remote);
  t.is(await asked(`${golden.uuid} ${golden.layer} 1 /old/name.pcow`), 'fetched 7 ');
  t.true((await facts(mount.image('golden'))).remote < golden.remote);
  await it.end('SIGKILL');
});

test.serial('a lazy image itself is not attached before it is complete', async (t) => {
  const mount = await imagesFor(t, {});
  const host = await startRegistry(t);
  await pushedWhole(`${mount.scratch}/pushed.pcow`, `${host}/golden:v1`);
  const original = await lazily(mount, host, []);
  await mount.mount();
  const tool = await program('map-tool', mount.scratch);
  await t.throwsAsync(monitored(t, tool, [mount.file('golden')]));
  await mount.write('now', 'golden', 'prefetch');
  await mount.logged(/golden: everything is here/);
  const guest = await monitored(t, tool, [mount.file('golden')]);
  const last = (PIECES - 1) * PIECE;
  t.is(await guest.ask(`read ${last}`), String(original[last]));
  await guest.end();
});
