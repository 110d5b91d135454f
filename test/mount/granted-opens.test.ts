/**
 * After a flat file has been opened once, it is opened without JavaScript. Operations that depend
 * on the list of its openings must still see all of them.
 */
import { open, readFile, rename, rm, type FileHandle } from 'node:fs/promises';

import test from 'ava';

import { eventually } from '../helpers/eventually.js';
import { MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

/** Opens a flat file three times, so that the open whose file is returned was granted. */
async function granted(mount: TestMount, name: string, flags: string): Promise<FileHandle> {
  for (let time = 0; time < 2; ++time) await (await open(mount.file(name), flags)).close();
  return open(mount.file(name), flags);
}

for (const flags of ['r', 'r+']) {
  test.serial(`a file that is open with ${flags} is in use until it is closed`, async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await mount.write('s', 'vm1', 'snapshot');
    const files = [await granted(mount, 'vm1', flags), await granted(mount, 'vm1', flags)];
    await mount.refused('EBUSY', 's', 'vm1', 'rollback');
    const counts = async () => (await mount.status('vm1')).open;
    t.deepEqual(await counts(), {
      reading: flags === 'r' ? 2 : 0,
      writing: flags === 'r' ? 0 : 2,
      snapshots: 0,
    });
    files.push(await granted(mount, 'vm1', flags));
    await mount.refused('EBUSY', 'vm1', 'vm1', 'remove');
    await t.throwsAsync(rename(mount.file('vm1'), mount.file('vm2')), { code: 'EBUSY' });
    for (const file of files) await file.close();
    await eventually(async () => {
      const { reading, writing } = await counts();
      return reading + writing === 0;
    });
    await granted(mount, 'vm1', flags).then((file) => file.close());
    await mount.write('s', 'vm1', 'rollback');
    await rename(mount.file('vm1'), mount.file('vm2'));
    await granted(mount, 'vm2', flags).then((file) => file.close());
    await mount.write('vm2', 'vm2', 'remove');
    await t.throwsAsync(open(mount.file('vm2')), { code: 'ENOENT' });
  });
}

test.serial(
  'a file that was opened for reading stays readable when another one is opened for writing',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const reader = await granted(mount, 'vm1', 'r');
    const writer = await granted(mount, 'vm1', 'r+');
    await writer.write('written');
    const { buffer } = await reader.read(Buffer.alloc(7), 0, 7, 0);
    t.is(buffer.toString(), 'written');
    await t.throwsAsync(reader.write('x'), { code: 'EBADF' });
    await writer.sync();
    await reader.sync();
    await writer.close();
    await reader.close();
  },
);

test.serial('each open after a rollback shows the old content', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await mount.write('empty', 'vm1', 'snapshot');
  for (let round = 0; round < 5; ++round) {
    const file = await granted(mount, 'vm1', 'r+');
    await file.write('written');
    await file.close();
    t.is((await readFile(mount.file('vm1'))).toString('latin1', 0, 7), 'written');
    await mount.write('empty', 'vm1', 'rollback');
    t.is((await readFile(mount.file('vm1'))).toString('latin1', 0, 7), '\0'.repeat(7));
  }
});

test.serial(
  'a monitor gets an image that is open, and other processes can then no longer write',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const it = await Conversation.start(
      t,
      await program('fake-monitor', mount.scratch),
      mount.file('vm1'),
    );
    for (let round = 0; round < 3; ++round) {
      const file = await granted(mount, 'vm1', 'r+');
      await file.write('before');
      t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
      await t.throwsAsync(file.write('during'), { code: 'EBUSY' });
      await t.throwsAsync(open(mount.file('vm1'), 'r+'), { code: 'EBUSY' });
      const { buffer } = await file.read(Buffer.alloc(6), 0, 6, 0);
      t.is(buffer.toString(), 'before');
      t.is(await it.ask('let-go'), 'released 0 ');
      await file.write('after ', 0);
      await file.close();
    }
  },
);

test.serial('an open after an image has replaced another one opens the new image', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  for (const name of ['vm1', 'vm2']) {
    const file = await granted(mount, name, 'r+');
    await file.write(name);
    await file.close();
  }
  const old = await granted(mount, 'vm1', 'r+');
  await rename(mount.image('vm2'), mount.image('vm1'));
  t.is((await readFile(mount.file('vm1'))).toString('latin1', 0, 3), 'vm2');
  await old.write('old');
  await old.sync();
  await old.close();
  t.is((await readFile(mount.image('vm1'))).indexOf('old'), -1);
  await rm(mount.image('vm1'));
  await t.throwsAsync(readFile(mount.file('vm1')), { code: 'ENOENT' });
});
