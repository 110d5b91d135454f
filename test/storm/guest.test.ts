/**
 * kill -9 of real QEMUs while their guests store and flush, of the mount and of commands beside
 * them, at random moments. Everything whose flush has returned to a guest is kept, snapshots do not
 * change, and the next round begins without human help.
 *
 *   PCOW_STORM_ROUNDS=200 (npm run storm -- 200 guest)
 */
import { createHash } from 'node:crypto';
import { open, readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { checkImage, Image } from '../../src/engine/index.js';
import { effort } from '../helpers/effort.js';
import { checkGuestNumbers, GuestWriter, GUEST_PAGES } from '../helpers/guest-writer.js';
import { attachedTo, imageOnBase, monitorPrefix } from '../helpers/monitored.js';
import { anyStore, imagesFor, MiB } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { ended, shuffled, started } from './deaths.js';

const ROUNDS = effort(2, 20, 'PCOW_STORM_ROUNDS');
const DISK = 128 * MiB;
const NUMBERS = GUEST_PAGES * 4096; // bytes
const LONGEST_LIFE_MS = 800;
const MOST_SNAPSHOTS = 4;

test.serial('kill -9 of QEMU while its guest writes: what was flushed is there', async (t) => {
  t.timeout(120_000 + ROUNDS * 60_000);
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}, ${ROUNDS} rounds`);
  const mount = await imagesFor(t, {});
  await imageOnBase(mount, 'vm1', DISK, (block) => (block * 65536 < NUMBERS ? 0 : block % 7));
  const killed = { qemu: 0, plainQemu: 0, mount: 0, command: 0, booting: 0 };
  const frozen = new Map<string, string>();
  let mounted = false;
  let flushed = 0;

  for (let round = 0; round < ROUNDS; ++round) {
    const where = `seed ${random.seed}, round ${round}`;
    if (!mounted) await mount.mount(...anyStore(random));
    mounted = true;
    const monitored = random.chance(0.75);
    const guest = await GuestWriter.boot(
      t,
      mount.file('vm1'),
      DISK,
      flushed + 1,
      monitored ? monitorPrefix() : [],
    );
    const early = random.chance(0.05);
    if (early) killed.booting += 1;
    else await guest.ready();
    const before = Math.max(flushed, guest.flushed);
    const life = random.below(LONGEST_LIFE_MS);
    const name = `s${round}`;
    const command = random.chance(0.6)
      ? sleep(random.below(life + 100)).then(() =>
          started(t, [process.execPath, pcowProgram, 'snapshot', `${mount.file('vm1')}@${name}`]),
        )
      : null;
    await sleep(life);
    // The stores of a QEMU without the monitor are safe only after a flush; those of a monitored
    // one are in the image at once.
    for (const victim of shuffled(random, [
      'qemu',
      ...(random.chance(0.4) ? ['mount'] : []),
      ...(command ? ['command'] : []),
    ])) {
      if (victim === 'qemu') {
        await guest.kill();
        killed[monitored ? 'qemu' : 'plainQemu'] += 1;
      } else if (victim === 'mount') {
        await mount.kill();
        mounted = false;
        killed.mount += 1;
      } else if (random.chance(0.5)) {
        await ended((await command) ?? null, 'SIGKILL');
        killed.command += 1;
      }
      if (random.chance(0.5)) await sleep(random.below(100));
    }
    if (!mounted) await mount.mount(...anyStore(random));
    mounted = true;
    await ended((await command) ?? null);
    await attachedTo(mount, 'vm1', null);

    flushed = Math.max(flushed, guest.flushed);
    checkGuestNumbers(await numbersIn(mount.file('vm1')), flushed);
    t.is((await mount.status('vm1')).state, 'ok', where);
    for (const snapshot of await readdir(mount.control('vm1', 'at'))) {
      const bytes = await numbersIn(mount.control('vm1', 'at', snapshot));
      const sum = createHash('sha1').update(bytes).digest('hex');
      if (!frozen.has(snapshot)) checkGuestNumbers(bytes, snapshot === name ? before : 0);
      t.is(sum, frozen.get(snapshot) ?? sum, `${where}: snapshot ${snapshot} has changed`);
      frozen.set(snapshot, sum);
    }
    for (const old of [...frozen.keys()].slice(0, -MOST_SNAPSHOTS)) {
      await mount.write(old, 'vm1', 'delete');
      frozen.delete(old);
    }
    if (random.chance(0.2)) {
      await mount.unmount();
      mounted = false;
      await (await Image.open(mount.image('vm1'), { write: true })).close(); // no lock is left
    }
    t.is((await checkImage(mount.image('vm1'))).damages, 0, where);
  }
  t.log(`killed: ${JSON.stringify(killed)}; ${flushed} numbers were flushed`);
  t.true(flushed > 0);
});

/** The part of a flat file that the guest writes. */
async function numbersIn(path: string): Promise<Buffer> {
  const file = await open(path);
  try {
    const bytes = Buffer.alloc(NUMBERS);
    for (let done = 0; done < NUMBERS;)
      done += (await file.read(bytes, done, NUMBERS - done, done)).bytesRead;
    return bytes;
  } finally {
    await file.close();
  }
}
