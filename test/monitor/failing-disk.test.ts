/**
 * A disk that fails below a mapping: readers and writers wait instead of getting wrong bytes, and a
 * failed flush is reported and remembered.
 */
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { GuestWriter } from '../helpers/guest-writer.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { attachedTo, imageOnBase, monitorPrefix, monitorReport } from '../helpers/monitored.js';
import { Conversation, preloadable, program } from '../helpers/program.js';

const BLOCK = 65536;

interface FailingDisk {
  /** In front of a command. */
  prefix: string[];
  fail(what: 'read' | 'sync' | 'nothing'): Promise<void>;
  /** The monitor's messages for the operator. */
  log: string;
}

/** For the image file with that name; other files are not affected. */
async function failingDisk(mount: TestMount, name: string): Promise<FailingDisk> {
  const control = path.join(mount.scratch, 'failing');
  const log = path.join(mount.scratch, 'monitor.log');
  const library = await preloadable('failing-disk', mount.scratch);
  const [env = '', preload = '', ...rest] = monitorPrefix({ PCOW_MONITOR_LOG: log });
  const both = preload.replace('LD_PRELOAD=', `LD_PRELOAD=${library}:`);
  return {
    prefix: [env, both, ...rest, `FAILING_DISK=${control}`, `FAILING_FILE=/${name}.pcow`],
    fail: (what) => writeFile(control, what),
    log,
  };
}

async function waits(mount: TestMount): Promise<void> {
  while (((await monitorReport(mount, 'vm1')).stalled ?? 0) === 0) await sleep(20);
}

async function isAnswered(answer: Promise<string>): Promise<boolean> {
  return Promise.race([answer.then(() => true), sleep(300).then(() => false)]);
}

test.serial(
  'a base that cannot be read: the guest is paused, status shows it, and it continues with the right bytes',
  async (t) => {
    const mount = await imagesFor(t, {});
    await imageOnBase(mount, 'vm1', MiB, (block) => 1 + block);
    await mount.mount();
    const disk = await failingDisk(mount, 'vm1-base');
    const [command = '', ...words] = disk.prefix;
    const tool = await Conversation.start(
      t,
      command,
      ...words,
      await program('map-tool', mount.scratch),
      mount.file('vm1'),
    );
    t.is(await tool.ask('read 0'), '1');

    await disk.fail('read');
    const read = tool.ask(`read ${3 * BLOCK}`);
    await waits(mount);
    t.false(await isAnswered(read));
    t.regex(
      await readFile(disk.log, 'utf8'),
      /cannot read .*vm1-base\.pcow.*; the guest is paused until this is fixed/,
    );
    t.regex(await readFile(mount.control('vm1', 'metrics'), 'utf8'), /^pcow_stalled\{[^}]*\} 1$/m);
    await disk.fail('nothing');
    t.is(await read, '4');

    await disk.fail('read');
    const write = tool.ask(`write ${5 * BLOCK + 100} 1 200`);
    await waits(mount);
    t.false(await isAnswered(write));
    await disk.fail('nothing');
    t.is(await write, 'ok');
    t.is((await monitorReport(mount, 'vm1')).stalled, 0);
    t.is(await tool.ask('sync'), 'ok');
    await tool.end();
    await attachedTo(mount, 'vm1', null);
    const block = (await readFile(mount.file('vm1'))).subarray(5 * BLOCK, 6 * BLOCK);
    t.true(
      block.equals(Buffer.alloc(BLOCK, 6).fill(200, 100, 101)),
      'what was copied, and what was stored',
    );
  },
);

test.serial(
  'after a failed flush, msync and every later flush fail until the image is opened again',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await mount.mount();
    const disk = await failingDisk(mount, 'vm1');
    const [command = '', ...words] = disk.prefix;
    const start = async (): Promise<Conversation> =>
      Conversation.start(
        t,
        command,
        ...words,
        await program('map-tool', mount.scratch),
        mount.file('vm1'),
      );
    const tool = await start();
    t.is(await tool.ask(`write 0 ${BLOCK} 7`), 'ok');
    t.is(await tool.ask('sync'), 'ok');
    t.is(await tool.ask(`write ${BLOCK} ${BLOCK} 8`), 'ok');
    await disk.fail('sync');
    t.not(await tool.ask('sync'), 'ok');
    await disk.fail('nothing');
    t.not(await tool.ask('sync'), 'ok', 'the kernel tells of lost pages once: it is not forgotten');
    await t.throwsAsync(mount.write('s', 'vm1', 'snapshot'), { code: 'EIO' });
    t.regex(
      (await mount.status('vm1')).lastError?.message ?? '',
      /every later sync fails, too, until the image is opened again/,
    );
    await tool.end('SIGKILL');
    await attachedTo(mount, 'vm1', null);

    const again = await start();
    t.is(await again.ask(`read ${BLOCK}`), '8');
    t.is(await again.ask('sync'), 'ok');
    await again.end();
  },
);

test.serial('the guest gets the error of a failed flush', async (t) => {
  const mount = await imagesFor(t, { vm1: 128 * MiB });
  await mount.mount();
  const disk = await failingDisk(mount, 'vm1');
  const guest = await GuestWriter.boot(t, mount.file('vm1'), 128 * MiB, 1, disk.prefix);
  await guest.ready();
  while (guest.flushed === 0) await sleep(20);
  await disk.fail('sync');
  await guest.failed();
  const { flushed } = guest;
  await disk.fail('nothing');
  await guest.kill();
  await attachedTo(mount, 'vm1', null);
  const image = await Image.open(mount.image('vm1'));
  const word = Buffer.alloc(8);
  await image.read(word, ((flushed * 37) % 1000) * 4096);
  t.is(word.readBigUInt64LE(), BigInt(flushed * 512));
  await image.close();
});
