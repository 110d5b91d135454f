/**
 * The native operations table in a real mount, in a child process: what it serves, and what it
 * leaves to JavaScript.
 */
import { type ChildProcess, execFile, fork } from 'node:child_process';
import { once } from 'node:events';
import {
  type FileHandle,
  mkdir,
  open,
  readFile,
  stat,
  statfs,
  utimes,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image, type ImageInfo } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const MiB = 1 << 20;

interface Counts {
  interceptions: number;
  requests: number;
  plainReads: number;
}

class Mount {
  constructor(
    readonly child: ChildProcess,
    readonly directory: string,
    readonly point: string,
  ) {}

  async ask<T = unknown>(command: string): Promise<T> {
    this.child.send(command);
    const [{ result }] = (await once(this.child, 'message')) as [{ result: T }];
    return result;
  }

  file(name: string): string {
    return path.join(this.point, name);
  }
}

/**
 * A mount of a 16 MiB image. Its clean-up is registered first, so that no process is left waiting
 * for it.
 */
async function mounted(t: ExecutionContext): Promise<Mount> {
  const directory = await scratchDirectory(t);
  const point = path.join(directory, 'mnt');
  await mkdir(point);
  await Image.create(path.join(directory, 'disk.pcow'), { size: 16 * MiB });
  t.teardown(async () => {
    const connection = await connectionOf(point);
    // It may hang in a request to itself. Do this while it is still listed: afterwards the next
    // mount may have its number.
    if (connection)
      await writeFile(`/sys/fs/fuse/connections/${connection}/abort`, '1').catch(() => undefined);
    await run('umount', ['-l', point]).catch(() => undefined); // not mounted: fine
    child.kill('SIGKILL');
  });
  const program = fileURLToPath(new URL('flat-file-mount.js', import.meta.url));
  const child = fork(program, [directory, point]);
  const [{ result }] = (await once(child, 'message')) as [{ result: string }];
  t.is(result, 'mounted');
  return new Mount(child, directory, point);
}

async function connectionOf(point: string): Promise<string | undefined> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  return lines
    .map((line) => line.split(' '))
    .find((fields) => fields[4] === point)?.[2]
    ?.split(':')[1];
}

async function opened(t: ExecutionContext, file: string, flags: string): Promise<FileHandle> {
  const handle = await open(file, flags);
  t.teardown(() => handle.close().catch(() => undefined));
  return handle;
}

test.serial('the bytes of flat files do not pass through JavaScript, other files do', async (t) => {
  const mount = await mounted(t);
  t.like(await mount.ask<Counts>('counts'), { interceptions: 1, requests: 0, plainReads: 0 });
  const bytes = Buffer.alloc(3 * MiB + 5, 'pcow');
  const file = await opened(t, mount.file('disk'), 'r+');
  await file.write(bytes, 0, bytes.length, 12345);
  await file.sync();
  const back = Buffer.alloc(bytes.length);
  await file.read(back, 0, back.length, 12345);
  t.true(back.equals(bytes));
  t.is(await readFile(mount.file('plain'), 'utf8'), 'through JavaScript');
  const counts = await mount.ask<Counts>('counts');
  t.true(counts.requests >= 4, 'the writes alone: a request has 1 MiB at most');
  t.true(counts.plainReads > 0);
  await file.close();
});

test.serial(
  'fallocate: holes and zero ranges are discards, preallocation is refused',
  async (t) => {
    const mount = await mounted(t);
    const disk = mount.file('disk');
    const file = await opened(t, disk, 'r+');
    await file.write(Buffer.alloc(4 * MiB, 7), 0, 4 * MiB, 0);
    await file.sync();
    const before = (await mount.ask<ImageInfo>('info')).diskUse;
    await run('fallocate', ['--punch-hole', '--offset', `${MiB}`, '--length', `${MiB}`, disk]);
    await run('fallocate', [
      '--zero-range',
      '--offset',
      `${2 * MiB + 1}`,
      '--length',
      `${MiB}`,
      disk,
    ]);
    const bytes = await readFile(disk);
    t.true(bytes.subarray(0, MiB).equals(Buffer.alloc(MiB, 7)));
    t.true(bytes.subarray(MiB, 2 * MiB).equals(Buffer.alloc(MiB)));
    t.is(bytes[2 * MiB], 7);
    t.true(bytes.subarray(2 * MiB + 1, 3 * MiB + 1).equals(Buffer.alloc(MiB)));
    t.is(bytes[3 * MiB + 1], 7);
    await file.sync();
    t.true((await mount.ask<ImageInfo>('info')).diskUse < before - MiB);
    await t.throwsAsync(run('fallocate', ['--length', `${MiB}`, disk]), {
      message: /not supported/,
    });
    await t.throwsAsync(
      run('fallocate', ['--zero-range', '--offset', `${15 * MiB}`, '--length', `${2 * MiB}`, disk]),
      {
        message: /too large/,
      },
    );
  },
);

test.serial('a snapshot is read through its own handle, and can not be written', async (t) => {
  const mount = await mounted(t);
  await writeFile(mount.file('disk'), 'before', { flag: 'r+' });
  await mount.ask('snapshot');
  await writeFile(mount.file('disk'), 'after!', { flag: 'r+' });
  t.is((await readFile(mount.file('at'))).subarray(0, 6).toString(), 'before');
  t.is((await readFile(mount.file('disk'))).subarray(0, 6).toString(), 'after!');
  const handle = await opened(t, mount.file('at'), 'r+');
  await t.throwsAsync(handle.write(Buffer.from('x'), 0, 1, 0), { code: 'EBADF' });
});

test.serial('cached pages survive another open, but not a rollback', async (t) => {
  const mount = await mounted(t);
  await writeFile(mount.file('disk'), 'before', { flag: 'r+' });
  await mount.ask('snapshot');
  await writeFile(mount.file('disk'), 'after!', { flag: 'r+' });
  const requestsFor = async (expected: string) => {
    const { requests } = await mount.ask<Counts>('counts');
    t.is((await readFile(mount.file('disk'))).subarray(0, 6).toString(), expected);
    return (await mount.ask<Counts>('counts')).requests - requests;
  };
  // The kernel may reclaim a page at any time. So the file is opened repeatedly until no page was
  // requested: if each open dropped the pages, that would never happen.
  const isCached = (expected: string) =>
    eventually(async () => (await requestsFor(expected)) === 0);
  t.true((await requestsFor('after!')) > 0);
  await isCached('after!');
  await mount.ask('rollback');
  t.true((await requestsFor('before')) > 0);
  await isCached('before');
});

test.serial('statfs is that of the image directory, in 64 bits', async (t) => {
  const mount = await mounted(t);
  const own = await statfs(mount.point, { bigint: true });
  const real = await statfs(mount.directory, { bigint: true });
  t.is(own.blocks, real.blocks);
  t.is(own.bsize, real.bsize);
  t.true(own.bfree > 0n);
});

test.serial('each time is set on the image file separately', async (t) => {
  const mount = await mounted(t);
  await utimes(mount.file('disk'), 1_000_000.25, 2_000_000.5);
  const image = path.join(mount.directory, 'disk.pcow');
  let times = await stat(image, { bigint: true });
  t.is(times.atimeNs, 1_000_000_250_000_000n);
  t.is(times.mtimeNs, 2_000_000_500_000_000n);
  await run('touch', ['-m', '-d', '@3000000.123456789', mount.file('disk')]);
  times = await stat(image, { bigint: true });
  t.is(times.atimeNs, 1_000_000_250_000_000n);
  t.is(times.mtimeNs, 3_000_000_123_456_789n);
  await t.throwsAsync(utimes(mount.file('plain'), 1, 1), { code: 'ENOENT' });
});

test.serial('after the image is closed, an open file gets EBADF', async (t) => {
  const mount = await mounted(t);
  const handle = await opened(t, mount.file('disk'), 'r+');
  await handle.write(Buffer.from('x'), 0, 1, 0);
  await mount.ask('close');
  await t.throwsAsync(handle.write(Buffer.from('y'), 0, 1, 0), { code: 'EBADF' });
  await t.throwsAsync(handle.sync(), { code: 'EBADF' });
});
