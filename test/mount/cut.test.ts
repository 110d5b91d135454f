/**
 * Snapshots of flat files that are mapped without the monitor: each is a consistent cut, and no
 * process is left stopped.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { readFile, readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { effort } from '../helpers/effort.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';
import { type CutShape, checkCut, cutSize } from './cut-record.js';

const run = promisify(execFile);
const SHAPE: CutShape = { threads: 3, pages: 100 };
const PAGE = 4096;
const SNAPSHOTS = effort(12, 40);
/** In which the mount is killed. */
const ROUNDS = effort(4, 16);

async function readCut(file: string): Promise<Buffer> {
  return (await readFile(file)).subarray(0, cutSize(SHAPE));
}

/** The content of the file when every page has been written since an earlier read. */
async function allWrittenSince(file: string, before: Buffer): Promise<Buffer> {
  for (;;) {
    const now = await readCut(file);
    const same = (at: number) => now.subarray(at, at + PAGE).equals(before.subarray(at, at + PAGE));
    if (!Array.from({ length: now.length / PAGE }, (_, page) => same(page * PAGE)).includes(true))
      return now;
    await sleep(10);
  }
}

async function writerOn(mount: TestMount, name: string): Promise<Conversation> {
  const writer = await program('cut-writer', mount.scratch);
  return Conversation.start(
    mount.t,
    writer,
    mount.file(name),
    String(SHAPE.threads),
    String(SHAPE.pages),
  );
}

/**
 * One letter, as in /proc/PID/stat. Loops ask for it a thousand times a second, so it is read
 * synchronously, which takes much less of the processor.
 */
function stateOf(pid: number): string {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return text.slice(text.lastIndexOf(') ') + 2)[0] ?? '';
}

test.serial('the checker recognises an inconsistent cut', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * MiB });
  const writer = await writerOn(mount, 'vm1');
  const early = await readCut(mount.file('vm1'));
  const later = await allWrittenSince(
    mount.file('vm1'),
    await allWrittenSince(mount.file('vm1'), early),
  );
  // The first thread's pages as they were, and the other threads' records of its later writes.
  const pages = SHAPE.pages * PAGE;
  const mixed = Buffer.concat([early.subarray(0, pages), later.subarray(pages)]);
  t.throws(() => checkCut(mixed, SHAPE), { message: /thread/ });
  await writer.end('SIGKILL');
});

test.serial('snapshots under a writer are consistent cuts', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * MiB });
  const writer = await writerOn(mount, 'vm1');
  let before = [0];
  // As many more as it takes the writer to get somewhere.
  for (let i = 0; i < SNAPSHOTS || Math.min(...before) <= 1000; ++i) {
    await mount.write(`s${i}`, 'vm1', 'snapshot');
    const last = checkCut(await readCut(mount.control('vm1', 'at', `s${i}`)), SHAPE);
    t.true(
      last.every((number, thread) => number >= (before[thread] ?? 0)),
      'a later snapshot holds no less',
    );
    before = last;
  }
  t.not(stateOf(writer.pid), 'T');
  // A frozen layer never changes.
  const [first, again] = [
    await readCut(mount.control('vm1', 'at', 's0')),
    await readCut(mount.control('vm1', 'at', 's0')),
  ];
  t.true(first.equals(again));
  await writer.end('SIGKILL');
});

test.serial('one snapshot of two images is one cut across both', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * MiB, vm2: 8 * MiB });
  const tool = await program('map-tool', mount.scratch);
  const one = await Conversation.start(t, tool, mount.file('vm1'));
  const two = await Conversation.start(t, tool, mount.file('vm2'));
  // vm2 gets each number only when vm1 has it: in a cut, vm1 has the number of vm2, or the next
  // one.
  let writing = true;
  const writer = (async () => {
    for (let i = 1; writing; i = (i % 200) + 1) {
      await one.ask(`write 4096 1 ${i}`);
      await two.ask(`write 4096 1 ${i}`);
    }
  })();
  for (let i = 0; i < 15; ++i) {
    await mount.write(`cut${i} vm1 vm2`, 'snapshot');
    const [a = 0, b = 0] = await Promise.all(
      ['vm1', 'vm2'].map(
        async (name) => (await readFile(mount.control(name, 'at', `cut${i}`)))[4096],
      ),
    );
    t.true(a === b || a === (b % 200) + 1, `vm1 has ${a}, vm2 has ${b}`);
  }
  writing = false;
  await writer;
});

test.serial('a process that was already stopped stays stopped', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * MiB });
  const writer = await writerOn(mount, 'vm1');
  process.kill(writer.pid, 'SIGSTOP');
  while (stateOf(writer.pid) !== 'T') await sleep(5);
  await mount.write('s', 'vm1', 'snapshot');
  checkCut(await readCut(mount.control('vm1', 'at', 's')), SHAPE);
  t.is(stateOf(writer.pid), 'T');
  process.kill(writer.pid, 'SIGCONT');
});

test.serial('a process may request a snapshot of an image that it has mapped itself', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * MiB });
  const tool = await Conversation.start(
    t,
    await program('map-tool', mount.scratch),
    mount.file('vm1'),
  );
  await tool.ask('write 8192 100 7');
  t.is(await tool.ask(`control ${mount.control('vm1', 'snapshot')} own`), 'ok');
  t.is((await readFile(mount.control('vm1', 'at', 'own')))[8192], 7);
  t.is(await tool.ask(`control ${mount.control('vm1', 'snapshot')} own`), '17', 'EEXIST');
});

test.serial('a clone of a mapped image is a cut as well', async (t) => {
  const mount = await mountedImages(t, { vm1: 8 * MiB });
  const writer = await writerOn(mount, 'vm1');
  await allWrittenSince(mount.file('vm1'), await readCut(mount.file('vm1')));
  await mount.write('copy', 'vm1', 'clone');
  const last = checkCut(await readCut(mount.file('copy')), SHAPE);
  t.true(Math.min(...last) > 0);
  await writer.end('SIGKILL');
});

test.serial(
  'with --no-stop a snapshot of a mapped file is refused, and status says why',
  async (t) => {
    const mount = await imagesFor(t, { vm1: 8 * MiB });
    await mount.mount('--no-stop');
    const writer = await writerOn(mount, 'vm1');
    const sentence = await mount.refused('EBUSY', 's', 'vm1', 'snapshot');
    t.regex(sentence, new RegExp(`process ${writer.pid} \\(cut-writer\\).*--no-stop`));
    await writer.end('SIGKILL');
    await mount.write('s', 'vm1', 'snapshot');
    checkCut(await readCut(mount.control('vm1', 'at', 's')), SHAPE);
  },
);

test.serial(
  'a kill of the mount in the middle of a snapshot leaves no process stopped',
  async (t) => {
    const mount = await imagesFor(t, { vm1: 8 * MiB });
    for (let round = 0; round < ROUNDS; ++round) {
      await mount.mount();
      const writer = await writerOn(mount, 'vm1');
      await mount.write(`before${round}`, 'vm1', 'snapshot').catch(() => undefined);
      // In every other round the snapshot waits with the writer stopped: for a process that cannot
      // stop before its child ends, which is stopped, too. In the others the mount is killed when
      // it has just stopped the writer, or a little later, or when the snapshot is done.
      const waits = round % 2 === 0;
      const parent = waits ? await parentOn(mount, 'vm1') : null;
      let snapshot: Snapshot;
      do {
        snapshot = begun(mount.write(`s${round}`, 'vm1', 'snapshot'));
        await stopOf(writer, snapshot);
        await sleep(round % 4);
      } while (waits && !(await haltedWithStopped(mount, writer)));
      await mount.kill();
      await snapshot.end;
      // The writer gets SIGBUS from its mapping when it continues, and ends. It must not remain
      // stopped.
      await eventually(async () => !(await stopped(writer.pid)));
      t.pass();
      await writer.end('SIGKILL').catch(() => undefined);
      await parent?.end('SIGKILL');
      await run('fusermount3', ['-u', '-z', mount.point]);
    }
  },
);

/** A process that has the image mapped, and waits for a child that shares its memory. */
async function parentOn(mount: TestMount, name: string): Promise<Conversation> {
  const tool = await Conversation.start(
    mount.t,
    await program('map-tool', mount.scratch),
    mount.file(name),
  );
  tool.ask('vfork').catch(() => undefined); // no answer
  while (stateOf(tool.pid) !== 'D') await sleep(5);
  return tool;
}

interface Snapshot {
  over: boolean;
  end: Promise<void>;
}

function begun(request: Promise<void>): Snapshot {
  const over = () => {
    snapshot.over = true;
  };
  const snapshot: Snapshot = { over: false, end: request.then(over, over) };
  return snapshot;
}

/** Resolves when the snapshot has stopped the writer, or is over. */
async function stopOf(writer: Conversation, snapshot: Snapshot): Promise<void> {
  while (!snapshot.over && stateOf(writer.pid) !== 'T') await sleep(0);
}

/** Halts the mount. If the writer was not stopped by then, continues it, and returns false. */
async function haltedWithStopped(mount: TestMount, writer: Conversation): Promise<boolean> {
  mount.daemon.kill('SIGSTOP');
  while (!(await halted(mount.daemon.pid ?? 0))) await sleep(1);
  if (stateOf(writer.pid) === 'T') return true;
  mount.daemon.kill('SIGCONT');
  return false;
}

async function halted(pid: number): Promise<boolean> {
  return statesOf(await readdir(`/proc/${pid}/task`)).every((state) => 'TX'.includes(state));
}

async function stopped(pid: number): Promise<boolean> {
  return statesOf(await readdir(`/proc/${pid}/task`).catch(() => [])).includes('T');
}

/** X: it has ended. */
function statesOf(threads: string[]): string[] {
  return threads.map((thread) => {
    try {
      return stateOf(Number(thread));
    } catch {
      return 'X';
    }
  });
}
