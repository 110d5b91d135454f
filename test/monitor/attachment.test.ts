/**
 * The states of an attachment (docs/monitor.md, "The attachment"): what each call does in each
 * state, as far as a test can hold a state. The attached process is test/programs/fake-monitor.c,
 * so that the test decides when it answers.
 */
import { open, readdir, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import test, { type ExecutionContext } from 'ava';

import { mountedImages, MiB, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

interface AttachStatus {
  attached: { pid: number; monitor: unknown } | null;
}

async function statusOf(mount: TestMount): Promise<AttachStatus> {
  return JSON.parse(await readFile(mount.control('vm1', 'status'), 'utf8')) as AttachStatus;
}

/** A process that has the flat file open, but is not attached yet. */
async function opener(t: ExecutionContext<unknown>, mount: TestMount): Promise<Conversation> {
  return Conversation.start(t, await program('fake-monitor', mount.scratch), mount.file('vm1'));
}

async function attached(t: ExecutionContext<unknown>, mount: TestMount): Promise<Conversation> {
  const it = await opener(t, mount);
  t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
  return it;
}

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

/** The results of write(2), fallocate and fsync. */
async function calls(it: Conversation): Promise<string[]> {
  return [await it.ask('write 5000 7'), await it.ask('punch 65536 4096'), await it.ask('fsync')];
}

test.serial(
  'released: every call waits until the mount has the image back, and none fails',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const it = await opener(t, mount);
    const other = await opener(t, mount);
    t.deepEqual(await calls(it), ['ok', 'ok', 'ok'], 'detached');
    for (let round = 0; round < 10; ++round) {
      t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
      t.is(await other.ask('write 5000 8'), 'EBUSY');
      const going = it.ask('let-go');
      // These calls come while the image is being given back, or shortly before or after.
      const outcomes = await Promise.all([
        other.ask('fsync'),
        open(mount.file('vm1'), 'r+').catch(String),
      ]);
      t.is(await going, 'released 0 ');
      t.is(outcomes[0], 'ok');
      if (typeof outcomes[1] !== 'string') await outcomes[1].close();
      t.deepEqual(await calls(it), ['ok', 'ok', 'ok']);
      t.deepEqual(await calls(other), ['ok', 'ok', 'ok']);
      t.is((await statusOf(mount)).attached, null);
    }
    const taker = await opener(t, mount);
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
    t.is(await it.ask('let-go'), 'released 0 ');
    t.is(await taker.ask('attach w'), `attached ${mount.image('vm1')}`, 'another process takes it');
  },
);

test.serial('lost: the process is killed, and the next process waits for the image', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const other = await opener(t, mount);
  for (let round = 0; round < 3; ++round) {
    const it = await attached(t, mount);
    await it.end('SIGKILL');
    t.deepEqual(await calls(other), ['ok', 'ok', 'ok']);
    const next = await attached(t, mount);
    await next.end('SIGKILL');
    const file = await open(mount.file('vm1'), 'r+');
    await file.write('x');
    await file.close();
    await mount.write(`s${round}`, 'vm1', 'snapshot');
  }
});

test.serial('attaching: the mount sends no request before the monitor has the image', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const it = await opener(t, mount);
  let reading = true;
  const readers = ['status', 'metrics'].map(async (name) => {
    while (reading) await readFile(mount.control('vm1', name));
  });
  for (let round = 0; round < 10; ++round) {
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
    t.is(await it.ask('let-go'), 'released 0 ');
  }
  reading = false;
  await Promise.all(readers);
});

test.serial(
  'attached and frozen: writing fails with EBUSY, an fsync waits for the snapshot',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const other = await opener(t, mount);
    const it = await attached(t, mount);
    const refused = async () => {
      t.is(await other.ask('write 5000 7'), 'EBUSY');
      t.is(await other.ask('punch 65536 4096'), 'EBUSY');
      await t.throwsAsync(open(mount.file('vm1'), 'r+'), { code: 'EBUSY' });
      t.is(await it.ask('open'), 'ok', 'the attached process opens its own file');
      const reader = await open(mount.file('vm1'), 'r');
      t.is((await reader.read(Buffer.alloc(1), 0, 1, 0)).bytesRead, 1);
      await reader.close();
    };
    await refused();
    const taking = mount.write('s', 'vm1', 'snapshot');
    await answers(t, it, 'prepare 0 s', 'cut 0 ');
    t.is(await it.ask('next'), 'commit 0 ');
    await refused();
    const { attached: busy } = await statusOf(mount);
    t.is(busy?.pid, it.pid);
    t.is(busy?.monitor, null, 'it is asked for its status after the snapshot');
    const syncing = other.ask('fsync');
    await it.ask('done ');
    const { kinds } = await answersUntil(it, 'sync 0 ');
    t.deepEqual(
      kinds.filter((kind) => kind !== 'status 0 '),
      ['finish 0 ', 'sync 0 '],
    );
    await taking;
    t.is(await syncing, 'ok');
  },
);

async function answersUntil(it: Conversation, last: string): Promise<{ kinds: string[] }> {
  const kinds: string[] = [];
  do {
    kinds.push(await it.ask('next'));
    await it.ask('done ');
  } while (kinds.at(-1) !== last);
  return { kinds };
}

test.serial(
  'the mount continues a snapshot if the process releases the image, or dies',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const other = await opener(t, mount);
    const steps = ['prepare 0 ', 'cut 0 ', 'commit 0 ', 'finish 0 '];
    for (const [at, step] of steps.entries()) {
      for (const way of ['let-go', 'late answer', 'killed']) {
        const name = `${way.replace(' ', '-')}${at}`;
        const it = await attached(t, mount);
        const taking = mount.write(name, 'vm1', 'snapshot');
        await answers(
          t,
          it,
          ...steps.slice(0, at).map((kind) => (kind === 'prepare 0 ' ? kind + name : kind)),
        );
        t.is(await it.ask('next'), step === 'prepare 0 ' ? step + name : step);
        if (way === 'killed') {
          await it.end('SIGKILL');
        } else {
          if (way === 'late answer') await it.ask('failed 108 the image is closed');
          t.is(await it.ask('let-go'), 'released 0 ');
          await it.end();
        }
        await taking;
        t.true((await readdir(mount.control('vm1', 'at'))).includes(name), name);
      }
    }
    const it = await attached(t, mount);
    const deleting = mount.write('killed0', 'vm1', 'delete');
    t.is(await it.ask('next'), 'delete 0 killed0');
    t.is(await it.ask('let-go'), 'released 0 ');
    await deleting;
    t.false((await readdir(mount.control('vm1', 'at'))).includes('killed0'));
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
    const syncing = other.ask('fsync');
    t.is(await it.ask('next'), 'sync 0 ');
    t.is(await it.ask('let-go'), 'released 0 ');
    t.is(await syncing, 'ok');
  },
);

test.serial(
  'a stopped process: the request is refused with its name, and never done later',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await mount.write('before', 'vm1', 'snapshot');
    const it = await attached(t, mount);
    process.kill(it.pid, 'SIGSTOP');
    await t.throwsAsync(mount.write('now', 'vm1', 'snapshot'), { code: 'EBUSY' });
    await t.throwsAsync(mount.write('before', 'vm1', 'delete'), { code: 'EBUSY' });
    const sentence = new RegExp(
      `process ${it.pid} \\(fake-monitor\\), which .* is stopped: continue it`,
    );
    t.regex((await mount.status('vm1')).lastError?.message ?? '', sentence);
    process.kill(it.pid, 'SIGCONT');
    const { kinds } = await Promise.all([
      mount.write('later', 'vm1', 'snapshot'),
      answersUntil(it, 'finish 0 '),
    ]).then(([, seen]) => seen);
    t.deepEqual(
      kinds.filter((kind) => kind !== 'status 0 '),
      ['prepare 0 later', 'cut 0 ', 'commit 0 ', 'finish 0 '],
      'it is not asked for what has failed',
    );

    const failing = t.throwsAsync(mount.write('half', 'vm1', 'snapshot'), { code: 'EBUSY' });
    t.is(await it.ask('next'), 'prepare 0 half');
    process.kill(it.pid, 'SIGSTOP');
    await failing;
    process.kill(it.pid, 'SIGCONT');
    await it.ask('done ');
    await answers(t, it, 'abort 0 ');
  },
);

test.serial('release: a malformed release ends the connection', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const it = await attached(t, mount);
  t.is(await it.ask('let-go'), 'released 0 ');
  const reader = await opener(t, mount);
  t.is(await reader.ask('attach r'), `attached ${mount.image('vm1')}`);
  t.is(await reader.ask('let-go'), 'released 0 ', 'who only reads gives it back as well');
  const early = await opener(t, mount);
  t.regex(
    await early.ask('hostile release'),
    /^refused 71 the monitor sent another message before kAttach/,
  );
});

test.serial('a process whose file cannot be closed does not delay others', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const stuck = await mountedImages(t, { vm1: MiB });
  const stranger = await opener(t, mount);
  const { pid } = stuck.daemon;
  if (pid === undefined) throw new Error('the mount has no pid');
  // Closing a file with changed pages writes them back, to a mount that does not answer. If the
  // kernel has written them back before the mount was stopped, the close ends.
  let answer = '';
  while (!answer.startsWith('refused')) {
    t.is(await stranger.ask(`dirty ${stuck.file('vm1')}`), 'ok');
    process.kill(pid, 'SIGSTOP');
    try {
      t.is(await stranger.ask('show-dirty'), 'ok');
      const it = await attached(t, mount);
      t.is(await it.ask('let-go'), 'released 0 ');
      await it.end();
      for (let more = 0; more < 3; ++more) t.is(await stranger.ask('show-dirty'), 'ok');
      const other = await opener(t, mount);
      for (let looks = 0; looks < 20 && !answer.startsWith('refused'); ++looks) {
        await sleep(200);
        answer = await other.ask('attach r');
        if (answer.startsWith('attached')) await other.ask('close');
      }
    } finally {
      process.kill(pid, 'SIGCONT');
    }
  }
  t.regex(answer, /^refused 11 closing the files that this user has sent takes too long/);
  let served: string;
  do {
    await sleep(100);
    served = await stranger.ask('attach w');
  } while (served.startsWith('refused 11'));
  t.is(served, `attached ${mount.image('vm1')}`);
});
