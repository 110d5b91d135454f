/**
 * A mount that has died or is stopped: the library does not wait forever, and its error names the
 * process and the fix.
 */
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { Image, MountedImage } from '../../src/index.js';
import { MiB } from '../helpers/mount.js';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';

test('a mount that is stopped, and one that has died', async (t) => {
  const scratch = await scratchDirectory(t);
  const at = (...names: string[]) => path.join(scratch, ...names);
  await mkdir(at('images'));
  await mkdir(at('mnt'));
  await Image.create(at('images', 'vm1.pcow'), { size: MiB });
  const daemon = await mounted(t, at('images'), at('mnt'));
  const vm1 = await MountedImage.find(at('mnt', 'vm1'));
  await vm1.snapshot('one');

  daemon.kill('SIGSTOP');
  const stopped = { code: 'PCOW_MOUNT', message: /does not answer: its process \d+ is stopped/ };
  const error = await t.throwsAsync(vm1.snapshot('two'), stopped);
  t.like(error, { next: `continue it: kill -CONT ${daemon.pid}` });
  await t.throwsAsync(vm1.status(), stopped);
  await t.throwsAsync(vm1.delete('one', { onProgress: () => undefined }), stopped);
  await t.throwsAsync(MountedImage.find(at('mnt', 'vm1')), stopped);
  daemon.kill('SIGCONT');
  t.is((await vm1.status()).lastError, null);
  await vm1.snapshot('two');

  daemon.kill('SIGKILL');
  await once(daemon, 'close');
  const died = { code: 'PCOW_MOUNT', message: /has died/ };
  await t.throwsAsync(vm1.snapshot('three'), died);
  await t.throwsAsync(vm1.rename('vm2'), died);
  await t.throwsAsync(MountedImage.find(at('mnt', 'vm1')), died);
});
