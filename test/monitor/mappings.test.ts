/**
 * What a program may do with a mapping under the monitor: it works as on any file, or is refused
 * with an errno that a file may return.
 */
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import {
  attachedStatus,
  attachedTo,
  monitored,
  monitorPrefix,
  monitorReport,
} from '../helpers/monitored.js';
import { program } from '../helpers/program.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const SIZE = 4 * MiB;
const PAGE = 4096;
const EVERYWHERE = [
  ...[
    'offset',
    'two-mappings',
    'fixed',
    'read-only',
    'write-only',
    'unmap-part',
    'shrink',
    'advise',
    'sync',
    'remove',
  ],
  ...['protect', 'replace-itself', 'private', 'beyond-the-end', 'fork', 'system-calls'],
];

/** As mapping-cases.c expects it. */
function content(): Buffer {
  const bytes = Buffer.alloc(SIZE);
  for (let page = 0; page < SIZE / PAGE; ++page)
    bytes.fill(1 + (page % 251), page * PAGE, (page + 1) * PAGE);
  return bytes;
}

/** Half of it in a base, half in the image itself, in alternating pages. */
async function mountedContent(t: ExecutionContext<unknown>): Promise<TestMount> {
  const mount = await imagesFor(t, { base: SIZE });
  const bytes = content();
  const base = await Image.open(mount.image('base'), { write: true });
  await base.write(bytes, 0);
  await base.snapshot('s');
  await base.close();
  await Image.create(mount.image('vm1'), { base: { path: mount.image('base'), snapshot: 's' } });
  const image = await Image.open(mount.image('vm1'), { write: true });
  for (let page = 0; page < SIZE / PAGE; page += 3) {
    await image.write(bytes.subarray(page * PAGE, (page + 1) * PAGE), page * PAGE);
  }
  await image.close();
  await mount.mount();
  return mount;
}

async function outcome(command: string, words: string[]): Promise<string> {
  try {
    return (await run(command, words)).stdout;
  } catch (error) {
    const { stdout, stderr, signal } = error as {
      stdout: string;
      stderr: string;
      signal: string | null;
    };
    return `${signal ?? ''} ${stdout}${stderr}`;
  }
}

async function underMonitor(file: string, ...words: string[]): Promise<string> {
  const [command = '', ...rest] = [...monitorPrefix(), file, ...words];
  return outcome(command, rest);
}

test.serial('each case holds for a plain file, so programs expect it', async (t) => {
  const scratch = await scratchDirectory(t);
  const cases = await program('mapping-cases', scratch);
  const file = path.join(scratch, 'plain');
  await writeFile(file, content());
  for (const name of EVERYWHERE) t.is(await outcome(cases, [file, name]), 'ok\n', name);
  t.true(content().equals(await readFile(file)));
});

test.serial('a mapping under the monitor behaves the same', async (t) => {
  const mount = await mountedContent(t);
  const cases = await program('mapping-cases', mount.scratch);
  for (const name of EVERYWHERE) {
    t.is(await underMonitor(cases, mount.file('vm1'), name), 'ok\n', name);
    await attachedTo(mount, 'vm1', null);
  }
  t.true(content().equals(await readFile(mount.file('vm1'))));
});

test.serial(
  'what only a monitored mapping does or refuses: an errno that programs know, and nothing is left',
  async (t) => {
    const mount = await mountedContent(t);
    const cases = await program('mapping-cases', mount.scratch);
    for (const name of ['not-moved', 'not-locked', 'not-synchronous', 'cycles']) {
      t.is(await underMonitor(cases, mount.file('vm1'), name), 'ok\n', name);
      await attachedTo(mount, 'vm1', null);
    }
  },
);

test.serial('a forked child that outlives its parent keeps nothing of the image', async (t) => {
  const mount = await mountedContent(t);
  const cases = await program('mapping-cases', mount.scratch);
  const said = await underMonitor(cases, mount.file('vm1'), 'child-lives-on');
  const child = Number(said.split('\n')[0]);
  t.teardown(() => process.kill(child, 'SIGKILL'));
  t.is(said, `${child}\nok\n`);
  await attachedTo(mount, 'vm1', null);
  await writeFile(mount.file('vm1'), Buffer.of(9), { flag: 'r+' });
  t.is((await readFile(mount.file('vm1')))[0], 9);
  t.notThrows(() => process.kill(child, 0), 'it is still there');
});

test.serial('a process that unmaps the image releases it', async (t) => {
  const mount = await mountedContent(t);
  const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
  await attachedTo(mount, 'vm1', tool.pid);
  t.is(await tool.ask('write 0 1 99'), 'ok');
  t.is(await tool.ask('unmap'), 'ok');
  await attachedTo(mount, 'vm1', null);
  await writeFile(mount.file('vm1'), Buffer.of(99, 98), { flag: 'r+' });
  t.deepEqual((await readFile(mount.file('vm1'))).subarray(0, 3), Buffer.of(99, 98, 1));
  await tool.end();
});

test.serial(
  'an fsync of the flat file by another process makes the attached one’s writes durable',
  async (t) => {
    const mount = await mountedContent(t);
    const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await tool.ask('write 0 1 99'), 'ok');
    const before = (await monitorReport(mount, 'vm1')).monitorSyncs;
    await run('sync', [mount.file('vm1')]);
    await run('sync', ['--data', mount.file('vm1')]);
    let after = before;
    for (let tries = 0; tries < 100 && after === before; ++tries) {
      await sleep(20); // a report may be a moment old
      after = (await monitorReport(mount, 'vm1')).monitorSyncs;
    }
    t.is(after, (before ?? NaN) + 2);
    await tool.end();
  },
);

test.serial(
  'an image has one writer: the error of a second one names it; there may be many readers',
  async (t) => {
    const mount = await mountedContent(t);
    const tool = await program('map-tool', mount.scratch);
    const cases = await program('mapping-cases', mount.scratch);
    const writer = await monitored(t, tool, [mount.file('vm1')]);
    t.is(await writer.ask(`write 0 ${PAGE} 1`), 'ok');
    const refused = await underMonitor(cases, mount.file('vm1'), 'two-mappings');
    t.regex(refused, /errno: EBUSY/);
    const { lastError } = await mount.status('vm1');
    t.regex(lastError?.message ?? '', new RegExp(`process ${writer.pid} \\(map-tool\\)`));
    t.is((await attachedStatus(mount, 'vm1')).attached?.pid, writer.pid);
    await t.throwsAsync(writeFile(mount.file('vm1'), 'x', { flag: 'r+' }), { code: 'EBUSY' });

    t.is(await underMonitor(cases, mount.file('vm1'), 'read-only'), 'ok\n');
    t.is(await writer.ask(`write ${PAGE} ${PAGE} 77`), 'ok', 'the writer goes on');
    t.is((await readFile(mount.file('vm1')))[PAGE], 77, 'the mount sees what it writes');
    await writer.end();
  },
);

test.serial(
  'without a mount behind a file, and for other files, the monitor changes nothing',
  async (t) => {
    const scratch = await scratchDirectory(t);
    const cases = await program('mapping-cases', scratch);
    const file = path.join(scratch, 'plain');
    await writeFile(file, content());
    for (const name of EVERYWHERE) t.is(await underMonitor(cases, file, name), 'ok\n', name);
  },
);
