/** The control files: commands, their text when they are read, and bad input. */
import { execFile, fork } from 'node:child_process';
import { once } from 'node:events';
import {
  type FileHandle,
  open,
  readdir,
  readFile,
  rename,
  stat,
  writeFile,
} from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { MountedImage } from '../../src/client/mounted-image.js';
import type { PcowError } from '../../src/engine/index.js';
import { MiB, mountedImages, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';

const run = promisify(execFile);

/** Writes bytes to the beginning of the flat file. */
async function put(mount: TestMount, name: string, text: string): Promise<void> {
  await writeFile(mount.file(name), text, { flag: 'r+' });
}

async function beginOf(file: string, length: number): Promise<string> {
  return (await readFile(file)).toString('latin1', 0, length);
}

test.serial('snapshot: take, read, roll back, delete', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await put(mount, 'vm1', 'one');
  await mount.write('first\n', 'vm1', 'snapshot');
  await put(mount, 'vm1', 'two');
  await mount.write('second', 'vm1', 'snapshot');
  await put(mount, 'vm1', 'xyz');
  t.deepEqual(await readdir(mount.control('vm1', 'at')), ['first', 'second']);
  t.is(await beginOf(mount.control('vm1', 'at', 'first'), 3), 'one');
  t.is(await beginOf(mount.control('vm1', 'at', 'second'), 3), 'two');
  t.is(await beginOf(mount.file('vm1'), 3), 'xyz');
  const at = await stat(mount.control('vm1', 'at', 'first'));
  t.is(at.size, MiB);
  t.is(at.mode & 0o777, 0o444);
  await t.throwsAsync(writeFile(mount.control('vm1', 'at', 'first'), 'x', { flag: 'r+' }), {
    code: 'EACCES',
  });

  await mount.write('first', 'vm1', 'rollback');
  t.is(await beginOf(mount.file('vm1'), 3), 'one', 'the page cache holds nothing of before');
  const lines = (await readFile(mount.control('vm1', 'snapshots'), 'utf8')).trimEnd().split('\n');
  t.deepEqual(
    lines
      .map((line) => JSON.parse(line) as { name: string; current: boolean })
      .map(({ name, current }) => [name, current]),
    [
      ['first', true],
      ['second', false],
    ],
  );
  await mount.write('second', 'vm1', 'delete');
  t.deepEqual(await readdir(mount.control('vm1', 'at')), ['first']);
  // The same name again shows the new content, not cached pages of the old one.
  await put(mount, 'vm1', 'new');
  await mount.write('second', 'vm1', 'snapshot');
  t.is(await beginOf(mount.control('vm1', 'at', 'second'), 3), 'new');
});

test.serial('a snapshot can be renamed, by its control file and by mv', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  for (const name of ['one', 'two']) {
    await put(mount, 'vm1', name);
    await mount.write(name, 'vm1', 'snapshot');
  }
  await mount.write('child one', 'vm1', 'clone');
  const inode = (await stat(mount.control('vm1', 'at', 'one'))).ino;
  await mount.write('one first', 'vm1', 'rename');
  t.is((await stat(mount.control('vm1', 'at', 'first'))).ino, inode, 'it is the same file');
  await rename(mount.control('vm1', 'at', 'first'), mount.control('vm1', 'at', 'uno'));
  t.deepEqual(await readdir(mount.control('vm1', 'at')), ['two', 'uno']);
  t.is(await beginOf(mount.control('vm1', 'at', 'uno'), 3), 'one');
  t.is(await beginOf(mount.file('child'), 3), 'one');
  await t.throwsAsync(stat(mount.control('vm1', 'at', 'one')), { code: 'ENOENT' });

  t.regex(await mount.refused('EEXIST', 'uno two', 'vm1', 'rename'), /"two" already/);
  t.regex(await mount.refused('ENOENT', 'one x', 'vm1', 'rename'), /no snapshot named one/);
  for (const bad of ['uno', 'uno a/b', 'uno ..', 'uno a b'])
    await mount.refused('EINVAL', bad, 'vm1', 'rename');
  const uno = mount.control('vm1', 'at', 'uno');
  await t.throwsAsync(rename(uno, mount.control('vm1', 'at', 'two')), { code: 'EEXIST' });
  await t.throwsAsync(rename(uno, mount.control('vm2', 'at', 'uno')), { code: 'EPERM' });
  await t.throwsAsync(rename(uno, mount.file('uno')), { code: 'EPERM' });
  const reading = await open(uno);
  t.regex(await mount.refused('EBUSY', 'uno x', 'vm1', 'rename'), /while its file is open/);
  await reading.close();
  await mount.write('uno x', 'vm1', 'rename');
  t.deepEqual(await readdir(mount.control('vm1', 'at')), ['two', 'x']);
});

test.serial('clone, as it is now and at a snapshot; neither changes the other', async (t) => {
  const mount = await mountedImages(t, { base: MiB });
  await put(mount, 'base', 'old');
  await mount.write('s', 'base', 'snapshot');
  await put(mount, 'base', 'now');
  await mount.write('a', 'base', 'clone');
  await mount.write('b s', 'base', 'clone');
  await put(mount, 'base', 'xxx');
  t.is(await beginOf(mount.file('a'), 3), 'now');
  t.is(await beginOf(mount.file('b'), 3), 'old');
  await put(mount, 'a', 'own');
  t.is(await beginOf(mount.file('base'), 3), 'xxx');
  t.regex(await mount.refused('EBUSY', 's', 'base', 'delete'), /b\.pcow/);
  t.regex(await mount.refused('EEXIST', 'a', 'base', 'clone'), /a already/);
  await mount.refused('ENOENT', 'c nothing', 'base', 'clone');
  for (const bad of ['..', 'x/y', '.hidden', 'a@b', 'status', 'x'.repeat(251)])
    await mount.refused('EINVAL', bad, 'base', 'clone');
  t.deepEqual(await readdir(mount.images), ['a.pcow', 'b.pcow', 'base.pcow']);
});

test.serial('a snapshot of several images', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  await mount.write('both vm1 vm2', 'snapshot');
  for (const name of ['vm1', 'vm2'])
    t.deepEqual(await readdir(mount.control(name, 'at')), ['both']);
  for (const [errno, text] of [
    ['EEXIST', 'both vm1 vm2'],
    ['EINVAL', 'twice vm1 vm1'],
    ['EINVAL', 'alone'],
    ['ENOENT', 's vm1 vm9'],
  ] as const) {
    await t.throwsAsync(mount.write(text, 'snapshot'), { code: errno }, text);
    const { lastError } = JSON.parse(
      await readFile(path.join(mount.point, '.pcow/status'), 'utf8'),
    ) as {
      lastError: { errno: string };
    };
    t.is(lastError.errno, errno);
  }
  t.deepEqual(await readdir(mount.control('vm1', 'at')), ['both']);
});

test.serial('resize grows an image, and its flat file at once', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await mount.write(String(2 * MiB), 'vm1', 'resize');
  t.is((await stat(mount.file('vm1'))).size, 2 * MiB);
  t.is((await readFile(mount.file('vm1'))).length, 2 * MiB);
  for (const bad of [String(MiB), '-1', '1G', '4097', '99999999999999999999'])
    await mount.refused('EINVAL', bad, 'vm1', 'resize');
});

test.serial('invalid text is refused with a message, and changes nothing', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const bad: [string | Uint8Array, RegExp][] = [
    ['\n', /not nothing/],
    ['a b', /not "a b"/],
    ['a\nb', /newline/],
    ['a\0b', /NUL/],
    [Uint8Array.of(0x61, 0xff, 0xfe), /UTF-8/],
    ['x'.repeat(256), /255/],
    ['x'.repeat(20_000), /limit/],
    ['../up', /"\/"/],
    ['..', /be named "\.\."/],
    ['tab\u0007', /control character/],
    ['a@b', /@/],
  ];
  for (const [text, sentence] of bad)
    t.regex(await mount.refused('EINVAL', text, 'vm1', 'snapshot'), sentence);
  t.regex(await mount.refused('ENOENT', 'nothing', 'vm1', 'rollback'), /nothing/);
  await mount.refused('ENOENT', 'nothing', 'vm1', 'delete');
  t.deepEqual(await readdir(mount.control('vm1', 'at')), []);
  await mount.write('größe', 'vm1', 'snapshot');
  t.deepEqual(await readdir(mount.control('vm1', 'at')), ['größe']);
});

test.serial('shells: >, >>, and reading with the usual tools', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const directory = mount.control('vm1');
  const script =
    'cd "$1" && echo a > snapshot && echo b >> snapshot && printf c > snapshot && ls at | tr "\\n" " "';
  t.is((await run('bash', ['-c', script, 'bash', directory])).stdout, 'a b c ');
  const { stdout } = await run('bash', [
    '-c',
    'cd "$1" && grep -c name status && wc -c < status && stat -c %s status && cat snapshot',
    'bash',
    directory,
  ]);
  const [, counted, size, ...text] = stdout.trimEnd().split('\n');
  t.is(counted, size);
  t.regex(text.join('\n'), /newest is c/);
  // Each control file has a text.
  for (const name of await readdir(directory)) {
    if (name !== 'at')
      t.true((await readFile(path.join(directory, name), 'utf8')).endsWith('\n'), name);
  }
  t.regex(await readFile(path.join(mount.point, '.pcow/help'), 'utf8'), /rollback/);
});

test.serial('a text stays the same for one opening', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const file = await open(mount.control('vm1', 'snapshots'));
  await mount.write('later', 'vm1', 'snapshot');
  t.is((await file.readFile()).length, 0);
  await file.close();
  t.regex(await readFile(mount.control('vm1', 'snapshots'), 'utf8'), /later/);
});

test.serial(
  'an open control file shows the error of its own last command, whatever other processes do',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const told = async (file: FileHandle) => {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(4096), 0, 4096, 0);
      return buffer.toString('utf8', 0, bytesRead);
    };
    for (const control of [
      mount.control('vm1', 'delete'),
      path.join(mount.point, '.pcow', 'snapshot'),
    ]) {
      const [one, other] = [await open(control, 'r+'), await open(control, 'r+')];
      const before = await told(one);
      await t.throwsAsync(one.write('a@ vm1'), { code: 'EINVAL' });
      await t.throwsAsync(other.write('b@ vm1'), { code: 'EINVAL' });
      const failure = JSON.parse(await told(one)) as Record<string, unknown>;
      t.like(failure, { command: path.basename(control), code: 'PCOW_INVALID', errno: 'EINVAL' });
      t.regex(String(failure.message), /a@/);
      t.regex(String(failure.time), /^\d{4}-.*Z$/);
      t.regex(await told(other), /b@/);
      if (control.endsWith('delete')) await mount.write('s', 'vm1', 'snapshot');
      await one.write(control.endsWith('delete') ? 's' : 's vm1');
      t.is(await told(one), before);
      await one.close();
      await other.close();
    }
  },
);

test.serial('clients that fail at the same time each get their own error', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const image = await MountedImage.find(mount.file('vm1'));
  const names = Array.from({ length: 16 }, (_, at) => `missing-${at}`);
  const asked = await Promise.allSettled(names.map((name) => image.delete(name)));
  for (const [at, outcome] of asked.entries()) {
    const { code, message } = (outcome as PromiseRejectedResult).reason as PcowError;
    t.is(code, 'PCOW_NOT_FOUND');
    t.true(message.endsWith(` missing-${at}`), message);
  }
});

test.serial(
  'an open control file acts on its image, even after a rename, and never on another image with its name',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
    const file = await open(mount.control('vm1', 'snapshot'), 'r+');
    try {
      await rename(mount.file('vm1'), mount.file('vm3'));
      await rename(mount.file('vm2'), mount.file('vm1'));
      await file.write('first');
      t.regex(await readFile(mount.control('vm3', 'snapshots'), 'utf8'), /first/);
      t.is(await readFile(mount.control('vm1', 'snapshots'), 'utf8'), '');

      await rename(mount.image('vm1'), mount.image('vm3'));
      await t.throwsAsync(file.write('second'), { code: 'ENOENT' });
      t.is(await readFile(mount.control('vm3', 'snapshots'), 'utf8'), '');
    } finally {
      await file.close();
    }
  },
);

test.serial('metrics count the operations', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  await run('dd', [
    'if=/dev/zero',
    `of=${mount.file('vm1')}`,
    'bs=4k',
    'count=4',
    'conv=notrunc,fsync',
  ]);
  await mount.write('s', 'vm1', 'snapshot');
  const text = await readFile(mount.control('vm1', 'metrics'), 'utf8');
  t.regex(text, /^pcow_writes_total\{image="vm1"\} 4$/m);
  t.regex(text, /^pcow_written_bytes_total\{image="vm1"\} 16384$/m);
  t.regex(text, /^pcow_syncs_total\{image="vm1"\} 1$/m);
  t.regex(text, /^pcow_commands_total\{image="vm1",command="snapshot"\} 1$/m);
  const all = await readFile(path.join(mount.point, '.pcow/metrics'), 'utf8');
  t.regex(all, /^pcow_size_bytes\{image="vm1"\} 1048576\npcow_size_bytes\{image="vm2"\} 1048576$/m);
  t.is(all.match(/^# TYPE pcow_writes_total counter$/gm)?.length, 1);
});

test.serial(
  'rollback is refused while a process has the flat file open, and names the process',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await mount.write('s', 'vm1', 'snapshot');
    const user = await Conversation.start(
      t,
      await program('map-tool', mount.scratch),
      mount.file('vm1'),
    );
    t.regex(
      await mount.refused('EBUSY', 's', 'vm1', 'rollback'),
      new RegExp(`process ${user.pid} \\(map-tool\\)`),
    );
    await user.end();
    await mount.write('s', 'vm1', 'rollback');
  },
);

test.serial('a snapshot whose file is open is not deleted', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  await mount.write('s', 'vm1', 'snapshot');
  const file = await open(mount.control('vm1', 'at', 's'));
  await mount.refused('EBUSY', 's', 'vm1', 'delete');
  await file.close();
  await mount.write('s', 'vm1', 'delete');
});

test.serial(
  'an image that another process writes: readable, and status names the process',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const child = fork(new URL('hold-image.js', import.meta.url), [mount.image('vm1')]);
    t.teardown(() => child.kill('SIGKILL'));
    await once(child, 'message');
    t.is((await readFile(mount.file('vm1'))).length, MiB);
    const sentence = await mount.refused('EBUSY', 's', 'vm1', 'snapshot');
    t.regex(sentence, new RegExp(`\\b${child.pid}\\b`));
    await t.throwsAsync(put(mount, 'vm1', 'x'), { code: 'EBUSY' });
    const { holder } = await mount.status('vm1');
    t.is(holder?.pid, child.pid);
    t.false(holder?.mount);
    // Its writes are visible through the mount, in spite of cached pages.
    child.send('write');
    await once(child, 'message');
    t.is(await beginOf(mount.file('vm1'), 3), 'new');
    const ended = once(child, 'exit');
    child.send('end');
    await ended;
    await mount.write('s', 'vm1', 'snapshot');
    const after = await mount.status('vm1');
    t.is(after.holder?.pid, mount.daemon.pid);
    t.true(after.holder?.mount);
  },
);
