/** Each error of the engine: its code, and a sentence that names the image. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmod,
  copyFile,
  mkdir,
  open,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image, PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import { scratchDirectory } from '../helpers/scratch.js';

const MiB = 1 << 20;

async function refused(
  t: ExecutionContext,
  work: Promise<unknown>,
  code: PcowErrorCode,
  message: RegExp,
) {
  const error = await t.throwsAsync(work, { instanceOf: PcowError, message });
  t.is(error.code, code, error.message);
}

async function image(t: ExecutionContext): Promise<{ directory: string; file: string }> {
  const directory = await scratchDirectory(t);
  const file = path.join(directory, 'disk.pcow');
  await Image.create(file, { size: MiB });
  return { directory, file };
}

test('PCOW_EXISTS and PCOW_NOT_FOUND: files and snapshots', async (t) => {
  const { directory, file } = await image(t);
  await refused(t, Image.create(file, { size: MiB }), 'PCOW_EXISTS', /disk\.pcow/);
  await refused(t, Image.open(path.join(directory, 'none.pcow')), 'PCOW_NOT_FOUND', /none\.pcow/);
  await refused(
    t,
    Image.create(path.join(directory, 'no', 'a.pcow'), { size: MiB }),
    'PCOW_NOT_FOUND',
    /a\.pcow/,
  );
  const opened = await Image.open(file, { write: true });
  await opened.snapshot('one');
  await refused(t, opened.snapshot('one'), 'PCOW_EXISTS', /disk\.pcow.*one/);
  await refused(t, opened.rollback('two'), 'PCOW_NOT_FOUND', /disk\.pcow.*two/);
  await refused(t, opened.delete('two'), 'PCOW_NOT_FOUND', /disk\.pcow.*two/);
  await refused(t, opened.read(Buffer.alloc(1), 0, 'two'), 'PCOW_NOT_FOUND', /disk\.pcow.*two/);
  t.throws(() => opened.layerOf('two'), { code: 'PCOW_NOT_FOUND' });
  await opened.close();
});

test('PCOW_CLOSED: everything after close', async (t) => {
  const { file } = await image(t);
  const opened = await Image.open(file, { write: true });
  await opened.close();
  await opened.close();
  await refused(t, opened.read(Buffer.alloc(1), 0), 'PCOW_CLOSED', /disk\.pcow is closed/);
  await refused(t, opened.write(Buffer.alloc(1), 0), 'PCOW_CLOSED', /disk\.pcow is closed/);
  await refused(t, opened.sync(), 'PCOW_CLOSED', /disk\.pcow is closed/);
  await refused(t, opened.delete('x'), 'PCOW_CLOSED', /disk\.pcow is closed/);
  t.throws(() => opened.info(), { code: 'PCOW_CLOSED' });
  t.throws(() => opened.snapshots(), { code: 'PCOW_CLOSED' });
});

test('PCOW_LOCKED: the error of a second writer, here and in another process, names the first', async (t) => {
  const { file } = await image(t);
  const first = await Image.open(file, { write: true });
  await refused(
    t,
    Image.open(file, { write: true }),
    'PCOW_LOCKED',
    new RegExp(`disk\\.pcow.*${process.pid}`),
  );
  await first.close();

  const holder = spawn(
    process.execPath,
    [fileURLToPath(new URL('hold-image.js', import.meta.url)), file],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  t.teardown(() => holder.kill('SIGKILL'));
  await once(holder.stdout, 'data');
  await refused(
    t,
    Image.open(file, { write: true }),
    'PCOW_LOCKED',
    new RegExp(`disk\\.pcow.*${holder.pid}`),
  );
  await refused(t, Image.create(file, { size: MiB, force: true }), 'PCOW_LOCKED', /disk\.pcow/);
  const reader = await Image.open(file);
  t.is(reader.info().holder?.pid, holder.pid);
  await reader.close();
  holder.kill('SIGKILL');
  await once(holder, 'exit');
  const second = await Image.open(file, { write: true });
  await second.close();
});

test('PCOW_READ_ONLY: changes through an image that was opened for reading', async (t) => {
  const { file } = await image(t);
  const opened = await Image.open(file);
  await refused(t, opened.write(Buffer.alloc(1), 0), 'PCOW_READ_ONLY', /disk\.pcow/);
  await refused(t, opened.discard(0, 1), 'PCOW_READ_ONLY', /disk\.pcow/);
  await refused(t, opened.snapshot('s'), 'PCOW_READ_ONLY', /disk\.pcow/);
  await refused(t, opened.resize(2 * MiB), 'PCOW_READ_ONLY', /disk\.pcow/);
  await opened.close();
});

test('PCOW_TOO_LARGE: a write past the end', async (t) => {
  const { file } = await image(t);
  const opened = await Image.open(file, { write: true });
  await refused(t, opened.write(Buffer.alloc(2), MiB - 1), 'PCOW_TOO_LARGE', /disk\.pcow/);
  await opened.close();
});

test('PCOW_NOT_AN_IMAGE, PCOW_CORRUPT: other files, truncated and flipped ones', async (t) => {
  const { directory, file } = await image(t);
  const other = path.join(directory, 'other.pcow');
  await writeFile(other, '');
  await refused(t, Image.open(other), 'PCOW_NOT_AN_IMAGE', /other\.pcow/);
  await writeFile(other, 'QFI\xfb'.repeat(10_000));
  await refused(t, Image.open(other), 'PCOW_NOT_AN_IMAGE', /other\.pcow/);
  await mkdir(path.join(directory, 'directory.pcow'));
  await t.throwsAsync(Image.open(path.join(directory, 'directory.pcow')), {
    instanceOf: PcowError,
  });

  await copyFile(file, other);
  await truncate(other, 8192);
  const error = await t.throwsAsync(Image.open(other), {
    instanceOf: PcowError,
    message: /other\.pcow/,
  });
  t.true(['PCOW_CORRUPT', 'PCOW_NOT_AN_IMAGE'].includes(error.code), error.code);

  // Both superblocks have the magic number, and neither checksum is right.
  await copyFile(file, other);
  const handle = await open(other, 'r+');
  for (const offset of [100, 4096 + 100]) await handle.write(Buffer.from([0xff]), 0, 1, offset);
  await handle.close();
  await refused(t, Image.open(other), 'PCOW_CORRUPT', /other\.pcow/);
});

test('PCOW_PERMISSION: a file that may not be read', async (t) => {
  const { directory, file } = await image(t);
  await chmod(directory, 0o755);
  await chmod(file, 0o600);
  const program = fileURLToPath(new URL('open-as-nobody.js', import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [program, file]);
  t.regex(stdout, /^PCOW_PERMISSION: .*disk\.pcow/);
});

test('PCOW_BASE_…: missing, changed, circular, outside', async (t) => {
  const { directory, file } = await image(t);
  const opened = await Image.open(file, { write: true });
  await opened.snapshot('s');
  await opened.close();
  const child = path.join(directory, 'child.pcow');
  const base = { path: file, snapshot: 's' };
  await refused(
    t,
    Image.create(child, { base: { path: file, snapshot: 'no' } }),
    'PCOW_NOT_FOUND',
    /no/,
  );
  await refused(
    t,
    Image.create(child, { base: { path: `${file}x`, snapshot: 's' } }),
    'PCOW_BASE_MISSING',
    /disk\.pcowx/,
  );
  await Image.create(child, { base });

  await mkdir(path.join(directory, 'elsewhere'));
  await refused(
    t,
    Image.open(child, { baseRoot: path.join(directory, 'elsewhere') }),
    'PCOW_BASE_OUTSIDE',
    /child\.pcow.*disk\.pcow/,
  );

  const aside = path.join(directory, 'aside');
  await rename(file, aside);
  await refused(t, Image.open(child), 'PCOW_BASE_MISSING', /child\.pcow.*disk\.pcow/);
  await Image.create(file, { size: MiB });
  await refused(t, Image.open(child), 'PCOW_BASE_CHANGED', /child\.pcow.*disk\.pcow/);
  await rm(file);

  // A link out of the directory is outside, too.
  await rename(aside, path.join(directory, 'elsewhere', 'disk'));
  await symlink('elsewhere/disk', file);
  const inner = path.join(directory, 'inner');
  await mkdir(inner);
  await rename(child, path.join(inner, 'child.pcow'));
  await symlink('../elsewhere/disk', path.join(inner, 'disk.pcow'));
  await refused(
    t,
    Image.open(path.join(inner, 'child.pcow'), { baseRoot: inner }),
    'PCOW_BASE_OUTSIDE',
    /disk/,
  );
});

test('PCOW_BASE_LOOP: an image below itself', async (t) => {
  const { directory, file } = await image(t);
  const opened = await Image.open(file, { write: true });
  await opened.snapshot('s');
  const child = path.join(directory, 'child.pcow');
  await Image.create(child, { base: { path: file, snapshot: 's' } });
  const upper = await Image.open(child, { write: true });
  await upper.snapshot('s');
  await upper.close();
  await refused(t, opened.setBase({ path: child, snapshot: 's' }), 'PCOW_BASE_LOOP', /disk\.pcow/);
  await opened.close();
});
