/** With --allow-other, users have the permissions of the images in a mount. */
import { execFile } from 'node:child_process';
import { chmod, chown } from 'node:fs/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';

const run = promisify(execFile);
const NOBODY = 65_534;

/** Whether a shell script succeeds for a user without special rights. $1 is the mountpoint. */
async function may(mount: TestMount, script: string): Promise<boolean> {
  const words = [
    `--reuid=${NOBODY}`,
    `--regid=${NOBODY}`,
    '--clear-groups',
    'sh',
    '-c',
    script,
    'sh',
    mount.point,
  ];
  return run('setpriv', words).then(
    () => true,
    () => false,
  );
}

async function openTo(mount: TestMount, ...options: string[]): Promise<void> {
  await chmod(mount.scratch, 0o755);
  await mount.mount(...options);
}

test.serial('the modes and owners of the images decide', async (t) => {
  const mount = await imagesFor(t, { secret: MiB, shared: MiB, own: MiB });
  await chmod(mount.image('secret'), 0o600);
  await chmod(mount.image('shared'), 0o644);
  await chmod(mount.image('own'), 0o600);
  await chown(mount.image('own'), NOBODY, NOBODY);
  await openTo(mount, '--allow-other');
  t.false(await may(mount, 'head -c 1 "$1/secret"'));
  t.false(await may(mount, 'cat "$1/.pcow/secret/status"'));
  t.false(await may(mount, 'ls "$1/.pcow/secret/at"'));
  t.true(await may(mount, 'head -c 1 "$1/shared"'));
  t.true(await may(mount, 'cat "$1/.pcow/shared/status"'));
  t.false(await may(mount, 'echo x | dd of="$1/shared" conv=notrunc'));
  t.false(await may(mount, 'echo s > "$1/.pcow/shared/snapshot"'));
  t.false(await may(mount, 'rm -f "$1/own"'), 'the directory is not theirs');
  t.true(await may(mount, 'echo x | dd of="$1/own" conv=notrunc'));
  t.true(await may(mount, 'echo s > "$1/.pcow/own/snapshot"'));
  t.true(await may(mount, 'head -c 1 "$1/.pcow/own/at/s"'));
  t.false(
    await may(mount, 'echo "s own secret" > "$1/.pcow/snapshot"'),
    'the mount-wide files go by the directory',
  );
});

test.serial('without --allow-other other users have no access', async (t) => {
  const mount = await imagesFor(t, { shared: MiB });
  await chmod(mount.image('shared'), 0o666);
  await openTo(mount);
  t.false(await may(mount, 'head -c 1 "$1/shared"'));
  t.false(await may(mount, 'ls "$1"'));
});
