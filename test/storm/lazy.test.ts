/**
 * Random operations of two guests on a lazy base, which may have a limit, while the registry is
 * away, slow, refuses, sends wrong bytes or restarts, snapshots are taken, and the mount is killed.
 * Whatever a guest reads must be what it wrote, or what was pushed.
 *
 *   PCOW_STORM_ROUNDS=1000 (npm run storm -- 1000 lazy)
 */
import { readFile } from 'node:fs/promises';

import test from 'ava';

import { checkImage } from '../../src/engine/check.js';
import { Image } from '../../src/engine/index.js';
import { pullLazily } from '../../src/registry/lazy-image.js';
import { PIECE } from '../../src/registry/piece-index.js';
import { effort } from '../helpers/effort.js';
import { imagesFor } from '../helpers/mount.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { type Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { PLAIN } from '../registry/images.js';
import { PIECES, pushedWhole } from '../registry/lazy-bench.js';
import { MoodyRegistry } from '../registry/moody.js';
import { MiB, reading } from '../stream/images.js';

const SIZE = 64 * MiB;

interface Guest {
  name: string;
  tool: Conversation;
  model: Buffer;
  snapshots: Map<string, Buffer>;
  /** What it does now; null: nothing. It waits as long as the registry does no good. */
  busy: Promise<void> | null;
}

test.serial('a storm: a lazy base, a registry that fails, a mount that is killed', async (t) => {
  const seed = seedFromEnvironment();
  t.log(`PCOW_SEED=${seed}`);
  const random = new Random(seed);
  const mount = await imagesFor(t, {});
  const pushed = `${mount.scratch}/pushed.pcow`;
  const layout = `${mount.scratch}/layout`;
  await pushedWhole(pushed, `oci:${layout}:v1`);
  const original = await contents(pushed, 'v1');
  const registry = await MoodyRegistry.start(t, layout, random);
  const golden = mount.image('golden');
  const limit = random.pick([undefined, 3 * MiB]);
  await pullLazily(`${registry.host}/golden:v1`, golden, { ...PLAIN, limit });
  t.log(`limit: ${limit ?? 'none'}`);
  const tool = await program('map-tool', mount.scratch);
  await Promise.all(
    ['vm1', 'vm2'].map((name) =>
      Image.create(mount.image(name), { base: { path: golden, snapshot: 'v1' } }),
    ),
  );
  await mount.mount(...(random.chance(0.5) ? ['--clean-store', '64M'] : []));
  const guests: Guest[] = [];
  for (const name of ['vm1', 'vm2']) {
    const model = Buffer.from(original);
    const process = await monitored(t, tool, [mount.file(name)]);
    guests.push({ name, tool: process, model, snapshots: new Map(), busy: null });
  }
  const anywhere = () => random.below(random.chance(0.8) ? PIECES * PIECE : SIZE - 10000);

  const steps = 20 * effort(3, 75, 'PCOW_STORM_ROUNDS');
  for (let step = 0; step < steps; ++step) {
    const guest = random.pick(guests);
    const what = random.weighted({ read: 40, write: 25, mood: 20, snapshot: 4, kill: 2 });
    t.log(`${step}: ${what} ${guest.name}, ${registry.mood}`);
    if (what === 'mood') {
      await registry.change();
    } else if (what === 'kill') {
      await mount.kill();
      await mount.mount();
      for (const { name, tool: process } of guests) await attachedTo(mount, name, process.pid);
    } else {
      if (guest.busy !== null) {
        await registry.be('well');
        await guest.busy;
      }
      if (what === 'snapshot') {
        if (guest.snapshots.size === 2) continue;
        const name = `s${step}`;
        await mount.write(name, guest.name, 'snapshot');
        guest.snapshots.set(name, Buffer.from(guest.model));
      } else {
        act(guest, what, anywhere());
      }
    }
  }
  await registry.be('well');
  for (const { busy } of guests) await busy;
  await mount.write('without limit', 'golden', 'prefetch');
  const dump = `${mount.scratch}/dump`;
  for (const guest of guests) {
    t.is(await guest.tool.ask(`dump ${dump}`), 'ok');
    t.true((await readFile(dump)).equals(guest.model), `${guest.name} holds something else`);
    await guest.tool.end();
    await attachedTo(mount, guest.name, null);
  }
  await mount.unmount();
  for (const { name, model, snapshots } of guests) {
    t.true((await contents(mount.image(name))).equals(model), `${name}, at rest`);
    for (const [snapshot, then] of snapshots)
      t.true((await contents(mount.image(name), snapshot)).equals(then), `${name}@${snapshot}`);
  }
  t.true((await contents(golden, 'v1')).equals(original));
  for (const name of ['golden', 'vm1', 'vm2']) {
    const { damages, leaks, remote } = await checkImage(mount.image(name));
    t.is(damages + leaks + remote, 0, name);
  }

  function act(guest: Guest, what: 'read' | 'write', offset: number): void {
    const { tool: process, model } = guest;
    const length = 1 + random.below(9000);
    const byte = 1 + random.below(255);
    const before = model[offset];
    if (what === 'write') model.fill(byte, offset, offset + length);
    guest.busy = (
      what === 'write'
        ? process.ask(`write ${offset} ${length} ${byte}`)
        : process.ask(`read ${offset}`)
    ).then((answer) => {
      t.is(answer, what === 'write' ? 'ok' : String(before), `${guest.name}, ${what} ${offset}`);
      guest.busy = null;
    });
  }
});

async function contents(file: string, snapshot?: string): Promise<Buffer> {
  return reading(file, async (image) => {
    const bytes = Buffer.alloc(SIZE);
    await image.read(bytes, 0, snapshot);
    return bytes;
  });
}
