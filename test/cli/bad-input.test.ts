/**
 * Mistakes of users, and the answers: one clear sentence with its own exit code, and nothing is
 * changed. The most likely mistakes, with the complete answers, are in `mistakes.test.ts`.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFile,
  link,
  mkdir,
  open,
  readFile,
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
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds, type Run } from './outcome.js';

const run = promisify(execFile);

/** A directory with the image vm1, 1 GiB, and its snapshot one. */
async function withImage(
  t: ExecutionContext<unknown>,
): Promise<{ directory: string; file: string; pcow: Run }> {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm1', '1G'));
  await succeeds(t, pcow('snapshot', 'vm1@one'));
  return { directory, file: path.join(directory, 'vm1.pcow'), pcow };
}

test('sizes', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await fails(t, pcow('create', 'vm1', '0'), 3, /the size is zero/, /10G/);
  await fails(t, pcow('create', 'vm1', '-5'), 3, /the size -5 is negative/);
  await fails(t, pcow('create', 'vm1', '-5G'), 3, /the size -5G is negative/);
  await fails(t, pcow('create', 'vm1', 'big'), 3, /"big" is not a size/, /10G/);
  await fails(
    t,
    pcow('create', '10G', 'my vm'),
    3,
    /"my vm" is not a size/,
    /“pcow create 'my vm' 10G”/,
  );
  await fails(t, pcow('create', 'vm1', '65T'), 3, /over the limit of 64 TiB/);
  await fails(t, pcow('create', 'vm1', '4K'), 3, /too small/);
  await fails(t, pcow('create', 'vm1', '1000000'), 3, /not a multiple of 4 KiB/, /976K and 980K/);
  await succeeds(t, pcow('create', 'vm2', '1G'));
  await fails(t, pcow('resize', 'vm2', '1000000001'), 3, /not a multiple of 4 KiB/);
  await fails(
    t,
    pcow('create', 'vm1', '1G', '--block-size', '48K'),
    3,
    /not a power of two/,
    /32K and 64K/,
  );
  await fails(t, pcow('create', 'vm1', '1G', '--block-size', '2K'), 3, /not between 4096/);
  await fails(t, pcow('create', 'vm1', '1G', '--block-size', '4M'), 3, /not between 4096/);
  await fails(t, pcow('create', 'vm1'), 2, /a size is missing/, /pcow create IMAGE SIZE/);
  await fails(t, pcow('info', 'vm1'), 4, /there is no image "vm1"/);
});

test('an existing target is never overwritten without --force', async (t) => {
  const { pcow, file } = await withImage(t);
  const before = await readFile(file);
  await fails(t, pcow('create', 'vm1', '2G'), 5, /vm1\.pcow exists already/, /--force/);
  await fails(t, pcow('clone', 'vm1@one', 'vm1'), 5, /vm1\.pcow exists already/, /--force/);
  t.true(before.equals(await readFile(file)));
});

test('--force replaces neither an image that others stand on, nor one that a process writes', async (t) => {
  const { pcow, file } = await withImage(t);
  await succeeds(t, pcow('clone', 'vm1@one', 'vm2'));
  await fails(
    t,
    pcow('create', 'vm1', '2G', '--force'),
    6,
    /can't be replaced: vm2\.pcow stands on it/,
  );
  const holder = await hold(t, file);
  await succeeds(t, pcow('clone', 'vm1@one', 'vm3'));
  await fails(t, pcow('create', 'vm1', '2G', '--force'), 6);
  holder.kill();
});

test('names of images', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await fails(t, pcow('create', '..', '1G'), 3, /can't be named ".."/);
  await fails(t, pcow('create', '.hidden', '1G'), 3, /begins with a dot/);
  await fails(t, pcow('create', 'a@b', '1G'), 3, /contains "@"/);
  await fails(
    t,
    pcow('create', 'a\nb', '1G'),
    3,
    /"a\\nb": it contains white space or a control character/,
  );
  await fails(t, pcow('create', 'x'.repeat(300), '1G'), 3, /it has 305 bytes; the limit is 255/);
  await fails(t, pcow('create', 'nowhere/vm1', '1G'), 4, /there is no directory "nowhere"/);
  await fails(t, pcow('create', 'vm1/', '1G'), 3, /names a directory/);
  await fails(t, pcow('info', 'x'.repeat(300)), 3, /300 bytes; the limit is 255/);
  await fails(t, pcow('info', ''), 4, /there is no image ""/);
  await fails(t, pcow('list', 'none'), 4, /there is no image "none"/);
});

test('names of snapshots', async (t) => {
  const { pcow } = await withImage(t);
  await fails(t, pcow('snapshot', 'vm1'), 2, /"vm1" does not name a snapshot/, /vm1@NAME/);
  await fails(t, pcow('snapshot', 'vm1@'), 3, /name is empty/);
  await fails(t, pcow('snapshot', 'vm1@..'), 3, /can't be named ".."/);
  await fails(t, pcow('snapshot', 'vm1@a/b'), 3, /contains "\/"/);
  await fails(t, pcow('snapshot', 'vm1@a@b'), 3, /contains "@"/);
  await fails(t, pcow('snapshot', 'vm1@a b'), 3, /contains white space/);
  await fails(t, pcow('snapshot', 'vm1@a\nb'), 3, /contains a newline/);
  await fails(t, pcow('snapshot', `vm1@${'x'.repeat(300)}`), 3, /300 bytes; the limit is 255/);
  await fails(t, pcow('snapshot', 'vm1@one'), 5, /vm1/, /one/);
  await fails(t, pcow('rollback', 'vm1@two'), 4, /no snapshot named two/, /pcow list/);
  await fails(t, pcow('delete', 'vm1@two'), 4, /no snapshot named two/);
  await fails(t, pcow('clone', 'vm1@two', 'vm2'), 4, /no snapshot named two/);
  await fails(t, pcow('create', 'vm2', '--base', 'vm1@two'), 4, /no snapshot named two/);
  await fails(t, pcow('snapshot', 'vm1@a', 'vm1@b'), 2, /has one name, but two are given: a and b/);
  await fails(t, pcow('snapshot', 'vm1@a', 'vm1@a'), 2, /listed twice/);
});

test('files that are no images, and damaged ones', async (t) => {
  const { pcow, directory, file } = await withImage(t);
  await writeFile(path.join(directory, 'text.pcow'), 'hello');
  await writeFile(path.join(directory, 'empty.pcow'), '');
  await mkdir(path.join(directory, 'folder.pcow'));
  await run('mkfifo', [path.join(directory, 'pipe.pcow')]);
  await symlink('loop.pcow', path.join(directory, 'loop.pcow'));
  await fails(t, pcow('info', 'text'), 3, /text\.pcow is not a Pcow image/, /pcow convert/);
  await fails(t, pcow('snapshot', 'empty@s'), 3, /empty\.pcow is not a Pcow image/);
  await fails(t, pcow('info', 'folder.pcow'), 4, /there is no image "folder.pcow"/);
  await fails(t, pcow('info', 'pipe'), 3, /not a regular file/);
  await fails(t, pcow('info', 'loop'), 3, /symbolic link that leads back to itself/);

  const cut = path.join(directory, 'cut.pcow');
  await copyFile(file, cut);
  await truncate(cut, 8192);
  await fails(t, pcow('info', 'cut'), 9, /cut\.pcow/);
  const flipped = path.join(directory, 'flipped.pcow');
  await copyFile(file, flipped);
  const handle = await open(flipped, 'r+');
  for (const slot of [0, 4096]) await handle.write(Buffer.from([0xff]), 0, 1, slot + 40);
  await handle.close();
  await fails(t, pcow('info', 'flipped'), 9, /flipped\.pcow/);
});

test('bases: missing, changed, circular, too large', async (t) => {
  const { pcow, directory, file } = await withImage(t);
  await fails(t, pcow('create', 'vm2', '--base', 'none'), 4, /there is no image "none"/);
  await fails(
    t,
    pcow('create', 'vm2', '512M', '--base', 'vm1@one'),
    3,
    /smaller than the base vm1@one/,
  );
  await fails(
    t,
    pcow('create', 'vm1', '--base', 'vm1@one', '--force'),
    10,
    /"vm1" can't stand on itself/,
  );
  await fails(t, pcow('info', 'vm2'), 4);
  await succeeds(t, pcow('create', 'vm2', '--base', 'vm1@one'));

  await rename(file, path.join(directory, 'away'));
  await fails(t, pcow('info', 'vm2'), 10, /vm1\.pcow/, /put the base back/);
  await fails(t, pcow('snapshot', 'vm2@s'), 10, /vm1\.pcow/);
  await succeeds(t, pcow('create', 'vm1', '1G'));
  await succeeds(t, pcow('snapshot', 'vm1@one'));
  await fails(t, pcow('info', 'vm2'), 10, /vm2/, /original base/);

  // vm2 stands on vm1, which is replaced by vm2 itself.
  await rename(path.join(directory, 'away'), file);
  await rename(path.join(directory, 'vm2.pcow'), path.join(directory, 'kept'));
  await rename(file, path.join(directory, 'away'));
  await link(path.join(directory, 'kept'), file);
  await fails(t, pcow('info', 'vm1'), 10, /vm1\.pcow/);
});

test('the error of a second writer names the process that has the image', async (t) => {
  const { pcow, file } = await withImage(t);
  const holder = await hold(t, file);
  for (const command of [
    ['snapshot', 'vm1@two'],
    ['rollback', 'vm1@one'],
    ['delete', 'vm1@one'],
    ['resize', 'vm1', '2G'],
    ['clone', 'vm1', 'vm2'],
  ]) {
    await fails(
      t,
      pcow(...command),
      6,
      new RegExp(`vm1\\.pcow.*\\b${holder.pid}\\b`),
      /end that process first/,
    );
  }
  t.regex(
    await succeeds(t, pcow('info', 'vm1')),
    new RegExp(`open for writing by process ${holder.pid}`),
  );
  t.regex(await succeeds(t, pcow('list')), new RegExp(`open \\(process ${holder.pid}\\)`));
  holder.kill('SIGKILL');
  await once(holder, 'close');
  t.regex(await succeeds(t, pcow('info', 'vm1')), /not closed by its last writer/);
  await succeeds(t, pcow('snapshot', 'vm1@two'));
});

test('command lines', async (t) => {
  const { pcow } = await withImage(t);
  await fails(t, pcow('creat', 'vm2', '1G'), 2, /unknown command 'creat'.*create/);
  await fails(
    t,
    pcow('info', 'vm1', '--jsn'),
    2,
    /unknown option '--jsn'.*--json/,
    /pcow info --help/,
  );
  await fails(t, pcow('info'), 2, /missing required argument 'image'/, /pcow info --help/);
  await fails(t, pcow('map', 'vm1', 'vm2'), 2, /too many arguments/);
  const bare = await pcow();
  t.is(bare.exit, 2);
  t.regex(bare.stderr, /Usage: pcow/);
  await fails(t, pcow('qemu-args', 'vm1'), 11, /"vm1" is not mounted/, /pcow mount/);
  await fails(t, pcow('qemu-args', 'vm1', '--device', 'floppy'), 2, /floppy/, /virtio-pmem/);
  await fails(t, pcow('qemu-args', 'vm1', '--unarmed'), 2, /--device nvdimm/);
  await fails(t, pcow('qemu-args', 'vm1', '--memory', '-4G'), 3, /memory size -4G is negative/);
});

test('a full disk', async (t) => {
  const directory = await scratchDirectory(t);
  t.teardown(() => run('umount', [directory]));
  await run('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', directory]);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm1', '1G'));
  const filler = path.join(directory, 'filler');
  await t.throwsAsync(writeFile(filler, Buffer.alloc(2 ** 20)), { code: 'ENOSPC' });
  await fails(t, pcow('snapshot', 'vm1@one'), 8, /vm1\.pcow: No space left/, /free space/);
  await fails(t, pcow('create', 'vm2', '1G'), 8, /vm2\.pcow/, /free space/);
  await rm(filler);
  t.regex(await succeeds(t, pcow('list')), /^vm1 .* closed$/m);
  await succeeds(t, pcow('snapshot', 'vm1@one'));
});

/** A process that has the image open for writing. */
async function hold(t: ExecutionContext<unknown>, file: string) {
  const program = fileURLToPath(new URL('../engine/hold-image.js', import.meta.url));
  const holder = spawn(process.execPath, [program, file], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => holder.kill('SIGKILL'));
  await once(holder.stdout, 'data');
  return holder;
}
