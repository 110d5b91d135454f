/**
 * Mounts and monitors of users without special rights: each gets the permissions of the open flat
 * file, and no more.
 */
import { execFile } from 'node:child_process';
import { chmod, chown, mkdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { inMountNamespace } from '../helpers/mount-namespace.js';
import { mountedBy, pcowProgram } from '../helpers/mounted.js';
import { Conversation, program } from '../helpers/program.js';
import { attachedTo } from '../helpers/monitored.js';

const run = promisify(execFile);
const NOBODY = 65_534;
const AS_NOBODY = ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'];

async function monitorOfNobody(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  file: string,
): Promise<Conversation> {
  const [command = '', ...words] = AS_NOBODY;
  const conversation = await Conversation.start(
    t,
    command,
    ...words,
    await program('fake-monitor', mount.scratch),
    file,
  );
  return conversation;
}

test.serial(
  'another user’s process: its own image to write, a readable one to read, and nothing of the others',
  async (t) => {
    const mount = await imagesFor(t, { secret: MiB, shared: MiB, own: MiB });
    await chmod(mount.scratch, 0o755);
    await chmod(mount.image('secret'), 0o600);
    await chmod(mount.image('shared'), 0o644);
    await chmod(mount.image('own'), 0o600);
    await chown(mount.image('own'), NOBODY, NOBODY);
    await mount.mount('--allow-other');

    const own = await monitorOfNobody(t, mount, mount.file('own'));
    t.is(await own.ask('attach w'), `attached ${mount.image('own')}`);
    await attachedTo(mount, 'own', own.pid);
    const reader = await monitorOfNobody(t, mount, `${mount.file('shared')}:r`);
    t.regex(
      await reader.ask('attach w'),
      /^refused 13 the flat file of shared is not open for reading and writing/,
    );
    const again = await monitorOfNobody(t, mount, `${mount.file('shared')}:r`);
    t.is(await again.ask('attach r'), `attached ${mount.image('shared')}`);
    await t.throwsAsync(monitorOfNobody(t, mount, `${mount.file('secret')}:r`), {
      message: /has ended/,
    });
    await own.end('SIGKILL');
    await attachedTo(mount, 'own', null);
  },
);

/**
 * The command that enters a mount namespace where every user may open /dev/fuse, as on an ordinary
 * machine; in a container only root may be allowed to.
 */
async function withFuseForAll(t: ExecutionContext<unknown>, scratch: string): Promise<string[]> {
  const script =
    'mount -t tmpfs -o dev,mode=755 none "$0" && mknod -m 666 "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse && echo ready && read _';
  const device = path.join(scratch, 'device');
  await mkdir(device);
  const holder = await Conversation.start(t, ...inMountNamespace(['sh', '-c', script, device]));
  return ['nsenter', `--mount=/proc/${holder.pid}/ns/mnt`];
}

test.serial(
  'a mount of an ordinary user: its socket is that user’s, and so are its attachments',
  async (t) => {
    const mount = await imagesFor(t, { vm1: MiB });
    await chmod(mount.scratch, 0o755);
    const runtime = path.join(mount.scratch, 'runtime');
    await mkdir(runtime, { mode: 0o700 });
    for (const mine of [mount.images, mount.point, mount.image('vm1'), runtime])
      await chown(mine, NOBODY, NOBODY);
    const inside = [...(await withFuseForAll(t, mount.scratch)), ...AS_NOBODY];
    const [command = '', ...words] = [...inside, 'env', `XDG_RUNTIME_DIR=${runtime}`];
    await mountedBy(t, [command, ...words], mount.images, mount.point);

    const it = await Conversation.start(
      t,
      command,
      ...words,
      await program('fake-monitor', mount.scratch),
      mount.file('vm1'),
    );
    t.is(await it.ask('write 0 7'), 'ok');
    const socket = await it.ask('where');
    t.is(path.dirname(socket), path.join(runtime, 'pcow'));
    t.is((await stat(socket)).uid, NOBODY);
    t.is(await it.ask('attach w'), `attached ${mount.image('vm1')}`);
    await it.end();
    const pcow = (...rest: string[]): Promise<unknown> =>
      run(command, [...words, process.execPath, pcowProgram, ...rest]);
    await pcow('snapshot', `${mount.file('vm1')}@s`);
    await pcow('umount', mount.point);
    const image = await Image.open(mount.image('vm1'));
    t.deepEqual(
      image.snapshots().map(({ name }) => name),
      ['s'],
    );
    const byte = Buffer.alloc(1);
    await image.read(byte, 0);
    t.is(byte[0], 7);
    await image.close();
  },
);
