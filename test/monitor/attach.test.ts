/**
 * The mount's side of attaching, with a process that speaks the protocol but maps nothing
 * (test/programs/fake-monitor.c).
 */
import { execFile } from 'node:child_process';
import { open, readdir, readFile, stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import type { AttachmentStatus } from '../../src/attach/attachment-status.js';
import { Image } from '../../src/engine/index.js';
import { mountedImages, imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

const run = promisify(execFile);

interface AttachStatus {
  uuid: string;
  writable: boolean;
  clean: boolean;
  attached: AttachmentStatus | null;
  readers: AttachmentStatus[];
}

async function statusOf(mount: TestMount, name: string): Promise<AttachStatus> {
  return JSON.parse(await readFile(mount.control(name, 'status'), 'utf8')) as AttachStatus;
}

/**
 * A fake monitor on a flat file, not attached yet. `mode` is "", ":r" or ":p", as in
 * fake-monitor.c.
 */
async function monitor(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  name: string,
  mode = '',
): Promise<Conversation> {
  return Conversation.start(
    t,
    await program('fake-monitor', mount.scratch),
    mount.file(name) + mode,
  );
}

async function attached(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  name: string,
): Promise<Conversation> {
  const it = await monitor(t, mount, name);
  t.is(await it.ask('attach w'), `attached ${mount.image(name)}`);
  return it;
}

/**
 * Answers the requests of these kinds, in this order, while something waits for them. Requests for
 * reports in between are answered, too.
 */
async function answers(
  t: ExecutionContext<unknown>,
  it: Conversation,
  ...expected: string[]
): Promise<void> {
  for (const request of expected) {
    t.is(await it.ask('next'), request);
    await it.ask('done ');
  }
}

/** Waits until the mount is the writer again, or no process has the image. */
async function free(mount: TestMount, name: string): Promise<void> {
  while ((await statusOf(mount, name)).attached !== null) await sleep(20);
}

test.serial(
  'attach: the process gets the image with its lock; the mount reads it, and names the process',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const it = await monitor(t, mount, 'vm1');
    t.is(await it.ask('write 0 7'), 'ok');
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);

    const reading = statusOf(mount, 'vm1');
    t.is(await it.ask('next'), 'status 0 ');
    await it.ask('done {"faults": 12}');
    const { attached, writable, readers } = await reading;
    t.like(attached, {
      pid: it.pid,
      command: 'fake-monitor',
      uid: process.getuid?.(),
      writable: true,
    });
    t.deepEqual(attached?.monitor, { faults: 12 });
    t.false(writable);
    t.deepEqual(readers, []);
    await t.throwsAsync(Image.open(mount.image('vm1'), { write: true }), { code: 'PCOW_LOCKED' });

    t.is(await it.ask('write 0 8'), 'EBUSY', 'also by a file that was open before');
    t.is(await it.ask('read 0'), '7');
    await t.throwsAsync(
      open(mount.file('vm1'), 'r+'),
      { code: 'EBUSY' },
      'nobody else gets it to write',
    );
    t.is((await readFile(mount.file('vm1')))[0], 7, 'what was written before went along');

    await it.end('SIGKILL');
    await free(mount, 'vm1');
    const again = await open(mount.file('vm1'), 'r+');
    await again.write(Buffer.of(9), 0, 1, 0);
    await again.close();
    t.is((await readFile(mount.file('vm1')))[0], 9);
  },
);

test.serial('a process that releases the image may write its open file again', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const it = await attached(t, mount, 'vm1');
  t.is(await it.ask('open'), 'ok', 'it may be opened again, to be mapped a second time');
  t.is(await it.ask('write 0 1'), 'EBUSY');
  await it.ask('release');
  await it.ask('close');
  t.is(await it.ask('write 0 5'), 'ok', 'it waits until the mount has the image');
  t.is((await readFile(mount.file('vm1')))[0], 5);
  t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
});

test.serial('one writer; commands that need the image name the process that has it', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await mount.write('s', 'vm1', 'snapshot');
  const second = await monitor(t, mount, 'vm1');
  const it = await attached(t, mount, 'vm1');
  const who = `process ${it.pid} \\(fake-monitor\\)`;
  t.regex(await second.ask('attach w'), new RegExp(`^refused 16 ${who} uses vm1`));
  await Promise.all([it.end('SIGKILL'), second.end('SIGKILL')]);
  await free(mount, 'vm1');

  const holder = await attached(t, mount, 'vm1');
  for (const [command, text] of [
    ['rollback', 's'],
    ['resize', String(2 * MiB)],
  ] as const) {
    await t.throwsAsync(mount.write(text, 'vm1', command), { code: 'EBUSY' }, command);
  }
  await t.throwsAsync(run('rm', [mount.file('vm1')]), { message: /busy/ });
  await holder.end('SIGKILL');
  await free(mount, 'vm1');
  t.regex(
    (await mount.status('vm1')).lastError?.message ?? '',
    /^process \d+ \(fake-monitor\) uses vm1/,
  );
});

test.serial('an image is handed over with its bases, in the order of the chain', async (t) => {
  const mount = await mountedImages(t, { base: MiB });
  await mount.write('middle', 'base', 'clone');
  await mount.write('vm1', 'middle', 'clone');
  const it = await monitor(t, mount, 'vm1');
  const chain = ['vm1', 'middle', 'base'].map((name) => mount.image(name)).join(' ');
  t.is(await it.ask('attach w'), `attached ${chain}`);
  // The base is not locked by that: it can still be used.
  const base = await open(mount.file('base'), 'r+');
  await base.write('x');
  await base.close();
});

test.serial(
  'any number of processes may attach to read, beside a writer; the image stays in use',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await mount.write('s', 'vm1', 'snapshot');
    const readers = [await monitor(t, mount, 'vm1', ':r'), await monitor(t, mount, 'vm1', ':r')];
    for (const reader of readers)
      t.is(await reader.ask('attach r'), `attached ${mount.image('vm1')}`);
    const reading = statusOf(mount, 'vm1');
    for (const reader of readers) {
      t.is(await reader.ask('next'), 'status 0 ');
      await reader.ask('done null');
    }
    t.deepEqual(
      (await reading).readers.map(({ pid, writable }) => [pid, writable]),
      readers.map(({ pid }) => [pid, false]),
    );
    t.is((await reading).attached, null);
    const writer = await attached(t, mount, 'vm1');
    await writer.end('SIGKILL');
    await readers[0]?.end('SIGKILL');
    await t.throwsAsync(mount.write('s', 'vm1', 'rollback'), { code: 'EBUSY' });
    await readers[1]?.end('SIGKILL');
    await mount.write('s', 'vm1', 'rollback');
    t.pass();
  },
);

test.serial(
  'the open file is the proof of right: without its permissions the process does not get the image',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await mount.write('s', 'vm1', 'snapshot');
    const reader = await monitor(t, mount, 'vm1', ':r');
    t.regex(
      await reader.ask('attach w'),
      /^refused 13 the flat file of vm1 is not open for reading and writing/,
    );
    const none = await monitor(t, mount, 'vm1', ':p');
    t.regex(await none.ask('attach r'), /^refused 13 /);
    t.regex(await none.ask('attach w'), /^refused 13 /);
    await reader.end('SIGKILL');
    await none.end('SIGKILL');
    t.is((await statusOf(mount, 'vm1')).attached, null);
  },
);

test.serial(
  'a flat file that is mapped without a monitor, or under a loop device, is not handed over',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
    const it = await monitor(t, mount, 'vm1');
    const mapper = await Conversation.start(
      t,
      await program('map-tool', mount.scratch),
      mount.file('vm1'),
    );
    await mapper.ask('write 0 10 5');
    t.regex(
      await it.ask('attach w'),
      new RegExp(`^refused 16 vm1 .* process ${mapper.pid} \\(map-tool\\)`),
    );
    await mapper.end();
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
    t.is(await it.ask('read 9'), '5', 'its pages were written back');

    const { stdout } = await run('losetup', ['--find', '--show', mount.file('vm2')]);
    const device = stdout.trim();
    t.teardown(() => run('losetup', ['-d', device]).catch(() => undefined));
    const other = await monitor(t, mount, 'vm2');
    t.regex(await other.ask('attach w'), new RegExp(`^refused 16 vm2 .*${device}`));
    await run('losetup', ['-d', device]);
  },
);

test.serial('the monitor does snapshot, delete and rename', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await mount.write('old', 'vm1', 'snapshot');
  const it = await attached(t, mount, 'vm1');
  const writing = mount.write('s', 'vm1', 'snapshot');
  await answers(t, it, 'prepare 0 s', 'cut 0 ', 'commit 0 ', 'finish 0 ');
  await writing;
  const deleting = mount.write('old', 'vm1', 'delete');
  await answers(t, it, 'delete 0 old');
  await deleting;
  const renaming = mount.write('old new', 'vm1', 'rename');
  await answers(t, it, 'rename 0 old new');
  await renaming;
  const metrics = readFile(mount.control('vm1', 'metrics'), 'utf8');
  t.is(await it.ask('next'), 'status 0 ');
  await it.ask(
    'done {"copiedBytes":3,"mappings":"4","faults":{"copy":{"sumNs":1500,"buckets":[1,0,2]},"other":7}}',
  );
  const text = await metrics;
  t.regex(text, /^pcow_copied_bytes_total\{image="vm1"\} 3$/m);
  t.notRegex(text, /pcow_mappings/, 'what is no number');
  t.deepEqual(
    text.split('\n').filter((line) => line.startsWith('pcow_fault_seconds')),
    [
      'pcow_fault_seconds_bucket{image="vm1",kind="copy",le="0.000001"} 1',
      'pcow_fault_seconds_bucket{image="vm1",kind="copy",le="0.000002"} 1',
      'pcow_fault_seconds_bucket{image="vm1",kind="copy",le="+Inf"} 3',
      'pcow_fault_seconds_sum{image="vm1",kind="copy"} 0.0000015',
      'pcow_fault_seconds_count{image="vm1",kind="copy"} 3',
    ],
  );
});

test.serial(
  'a snapshot that a monitor cannot take: its errno, its message, and the rest is undone',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB, vm2: MiB, plain: MiB });
    const one = await attached(t, mount, 'vm1');
    const two = await attached(t, mount, 'vm2');
    const refused = t.throwsAsync(mount.write('s vm1 vm2 plain', 'snapshot'), { code: 'ENOSPC' });
    await answers(t, one, 'prepare 0 s');
    t.is(await two.ask('next'), 'prepare 0 s');
    await two.ask('failed 28 no room');
    await answers(t, one, 'abort 0 ');
    await answers(t, two, 'abort 0 ');
    await refused;
    t.deepEqual(await readdir(mount.control('plain', 'at')), []);

    const taking = mount.write('s vm1 vm2 plain', 'snapshot');
    await answers(t, one, 'prepare 0 s');
    await answers(t, two, 'prepare 0 s');
    await answers(t, one, 'cut 0 ');
    t.is(await two.ask('next'), 'cut 0 ');
    await two.end('SIGKILL');
    // Nothing has happened yet: the snapshot is taken again, by the mount for the image that it has
    // got back.
    await answers(t, one, 'abort 0 ', 'prepare 0 s', 'cut 0 ', 'commit 0 ', 'finish 0 ');
    await taking;
    for (const name of ['vm2', 'plain'])
      t.deepEqual(await readdir(mount.control(name, 'at')), ['s']);
  },
);

test.serial(
  'the mount is killed: the process keeps the image, and connects to the next mount',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
    const { uuid } = await statusOf(mount, 'vm1');
    const it = await attached(t, mount, 'vm1');
    await mount.kill();
    await run('fusermount3', ['-u', '-z', mount.point]);
    await mount.mount();
    await t.throwsAsync(
      mount.write('s', 'vm1', 'snapshot'),
      { code: 'EBUSY' },
      'nobody else gets it meanwhile',
    );
    t.regex(await it.ask('resume 00000000-0000-0000-0000-000000000000'), /^refused 2 /);
    t.is(await it.ask(`resume ${uuid}`), 'attached');
    const writing = mount.write('s', 'vm1', 'snapshot');
    await answers(t, it, 'prepare 0 s', 'cut 0 ', 'commit 0 ', 'finish 0 ');
    await writing;
    await it.end('SIGKILL');
    await free(mount, 'vm1');
    await mount.write('s', 'vm1', 'snapshot');
    t.deepEqual(await readdir(mount.control('vm1', 'at')), ['s']);
  },
);

test.serial(
  'a process that shows an image file without its lock does not become its writer',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const { uuid } = await statusOf(mount, 'vm1');
    const it = await monitor(t, mount, 'vm1');
    t.is(await it.ask('attach r'), `attached ${mount.image('vm1')}`);
    t.regex(
      await it.ask(`resume ${uuid}`),
      /^refused 16 the descriptor does not carry the writer's lock/,
    );
    t.is((await statusOf(mount, 'vm1')).attached, null);
  },
);

test.serial('hostile peers are refused, and do not disturb others', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const it = await monitor(t, mount, 'vm1');
  const before = await readdir(`/proc/${mount.daemon.pid}/fd`);
  for (const name of [
    'short',
    'magic',
    'version',
    'length',
    'long',
    'zero',
    'value',
    'text',
    'uuid',
    'no-descriptor',
    'two-descriptors',
    'many-descriptors',
    'order',
    'kind',
    'request',
  ]) {
    t.regex(await it.ask(`hostile ${name}`), /^refused 71 the monitor sent /, name);
  }
  t.regex(await it.ask('hostile pipe'), /^refused 22 the descriptor is not an open flat file/);
  t.regex(await it.ask('hostile resume-pipe'), /^refused 2 /);
  t.regex(await it.ask('hostile resume-flat-file'), /^refused 2 /);
  t.is(await it.ask('hostile empty'), 'closed');
  t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
  // The image stands on nothing lazy, so the mount has not said that it fetches.
  t.is(await it.ask('fetch 1 x'), 'ok');
  t.regex(await it.ask('next'), /^refused 71 the monitor sent kFetch without kMayFetch/);
  await it.ask('release');
  await free(mount, 'vm1');
  await it.ask('open');
  t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
  // An answer to no request ends the connection.
  await it.ask('answer-id 77');
  t.regex(await it.ask('next'), /^refused 71 the monitor sent an answer to no request/);
  await it.end('SIGKILL');
  await free(mount, 'vm1');
  await mount.write('s', 'vm1', 'snapshot');
  const after = await readdir(`/proc/${mount.daemon.pid}/fd`);
  t.true(
    after.length <= before.length + 3,
    `${before.length} open descriptors before, ${after.length} after`,
  );
});

test.serial('silent connections, and more connections than allowed', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const crowd = await monitor(t, mount, 'vm1');
  t.is(await crowd.ask('many 1000'), 'ok');
  t.is(await crowd.ask('many 20'), 'ok');
  const it = await attached(t, mount, 'vm1');
  t.is(await crowd.ask('many 4'), 'ok');
  const silent = await monitor(t, mount, 'vm1', ':r');
  t.regex(await silent.ask('hostile silence'), /^refused 110 the mount waited ten seconds/);
  // A monitor that does not answer delays no status.
  t.is((await statusOf(mount, 'vm1')).attached?.monitor, null);
  await it.end('SIGKILL');
  await free(mount, 'vm1');
});

test.serial(
  'the socket: its path depends on the directory alone, and it is removed with the mount',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    const attribute = async (): Promise<string> => {
      const it = await monitor(t, mount, 'vm1');
      const where = await it.ask('where');
      await it.end();
      return where;
    };
    await mount.mount();
    const first = await attribute();
    const { mode } = await stat(first);
    t.is(mode & 0o777, 0o666);
    await mount.kill();
    await run('fusermount3', ['-u', '-z', mount.point]);
    t.true((await stat(first)).isSocket(), 'a killed mount leaves its socket behind');
    await mount.mount();
    t.is(await attribute(), first);
    await mount.unmount();
    await t.throwsAsync(stat(first), { code: 'ENOENT' });
  },
);
