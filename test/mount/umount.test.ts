/**
 * A mount that also exists elsewhere does not end: umount says where, and does not wait forever.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, readFile, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import test from 'ava';

import { imagesFor, MiB } from '../helpers/mount.js';
import { inMountNamespace } from '../helpers/mount-namespace.js';
import { pcowProgram } from '../helpers/mounted.js';

const run = promisify(execFile);

async function refusalOf(...words: string[]): Promise<{ code: number; stderr: string }> {
  const [command = '', ...rest] = words;
  return run(command, rest).then(
    () => ({ code: 0, stderr: '' }),
    ({ code, stderr }: { code: number; stderr: string }) => ({ code, stderr }),
  );
}

test.serial('a bind mount of the mountpoint', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const other = path.join(mount.scratch, 'other');
  await mkdir(other);
  await run('mount', ['--bind', mount.point, other]);
  t.teardown(() => run('umount', ['--lazy', other]).catch(() => undefined));
  const { code, stderr } = await refusalOf(process.execPath, pcowProgram, 'umount', mount.point);
  t.is(code, 11);
  t.regex(
    stderr,
    new RegExp(`^pcow: ${mount.images} is still mounted on ${other}: "umount ${other}"`, 'm'),
  );
});

test.serial('a mount that is removed in another mount namespace only', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const command = [process.execPath, pcowProgram, 'umount', mount.point];
  const { code, stderr } = await refusalOf(...inMountNamespace(command, { kept: mount.point }));
  t.is(code, 11);
  t.regex(
    stderr,
    new RegExp(
      `^pcow: ${mount.images} is still mounted on ${mount.point} in another mount namespace, that of`,
      'm',
    ),
  );
  t.is((await mount.status('vm1')).state, 'ok');
});

test.serial('a mount that ends while the next one of its directory begins', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const firstEnded = once(mount.daemon, 'close');
  const umount = spawn(process.execPath, [pcowProgram, 'umount', mount.point], {
    stdio: 'inherit',
  });
  t.teardown(() => umount.kill('SIGKILL'));
  const umountEnded = once(umount, 'close');
  // From the moment in which it is removed from view, so that it does not see the moment in which
  // no process has the lock.
  while ((await readFile('/proc/self/mountinfo', 'utf8')).includes(` ${mount.point} `)) continue;
  umount.kill('SIGSTOP');
  await firstEnded;
  await mount.mount();
  umount.kill('SIGCONT');
  t.deepEqual(await umountEnded, [0, null]);
  t.is((await mount.status('vm1')).state, 'ok');
});

test.serial('a mount that another process looks at for a moment', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  await mount.mount();
  const ended = once(mount.daemon, 'close');
  const programs = path.join(mount.scratch, 'bin');
  await mkdir(programs);
  const fusermount = (await run('which', ['fusermount3'])).stdout.trim();
  // The first three calls fail as they do while a `stat` of another process is under way.
  const script = `#!/bin/sh
    echo call >> ${programs}/calls
    if [ $(wc -l < ${programs}/calls) -lt 4 ]; then
      echo "fusermount3: failed to unmount $3: Device or resource busy" >&2
      exit 1
    fi
    exec ${fusermount} "$@"`;
  await writeFile(path.join(programs, 'fusermount3'), script, { mode: 0o755 });
  const PATH = `${programs}:${process.env.PATH ?? ''}`;
  await run(process.execPath, [pcowProgram, 'umount', mount.point], {
    env: { ...process.env, PATH },
  });
  t.deepEqual(await ended, [0, null]);
});

const PRERM = fileURLToPath(new URL('../../../packaging/debian/prerm', import.meta.url));

test.serial(
  'the package is not removed because of one mount: the others are looked at first, and stay',
  async (t) => {
    const idle = await imagesFor(t, { vm1: MiB });
    const busy = await imagesFor(t, { vm1: MiB });
    for (const mount of [idle, busy]) await mount.mount();
    const programs = path.join(idle.scratch, 'bin');
    await mkdir(programs);
    await symlink(pcowProgram, path.join(programs, 'pcow'));
    // The mounts of this test alone; and no services.
    const lines = `${idle.point}\n${busy.point}\n`;
    await writeFile(path.join(programs, 'findmnt'), `#!/bin/sh\nprintf %s '${lines}'\n`, {
      mode: 0o755,
    });
    await writeFile(path.join(programs, 'systemctl'), '#!/bin/sh\n', { mode: 0o755 });
    const words = [
      'env',
      `PATH=${programs}:${process.env.PATH ?? ''}`,
      'sh',
      PRERM,
      'remove',
    ] as const;

    const file = await open(busy.file('vm1'));
    const { code, stderr } = await refusalOf(...words);
    t.is(code, 1);
    t.regex(
      stderr,
      new RegExp(
        `pcow: ${busy.point} is in use by process ${process.pid} .*\n[^]*pcow: it is not removed`,
      ),
    );
    for (const mount of [idle, busy]) t.is((await mount.status('vm1')).state, 'ok');

    await file.close();
    t.deepEqual(await refusalOf(...words), { code: 0, stderr: '' });
    const table = await readFile('/proc/self/mountinfo', 'utf8');
    for (const { point } of [idle, busy]) t.false(table.includes(` ${point} `));
  },
);
