/** The next step after an error fits its cause, and not only its code. */
import { chmod, mkdir } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { advising, explained, Failure } from '../../cli/output/errors.js';
import { PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import { mounted, pcowProgram } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, shellIn, succeeds } from './outcome.js';

const NOBODY = 'setpriv --reuid=65534 --regid=65534 --clear-groups';

function adviceFor(code: PcowErrorCode, errno?: number, next?: string | null): string | undefined {
  return explained(new PcowError(code, 'a sentence', { errno, next })).hint;
}

test('a missing base must be put back; a base that cannot be read or opened need not', (t) => {
  t.regex(adviceFor('PCOW_BASE_MISSING') ?? '', /^put the base back/);
  t.regex(adviceFor('PCOW_BASE_MISSING', 13) ?? '', /^run as the user who owns it/);
  t.regex(adviceFor('PCOW_BASE_MISSING', 24) ?? '', /ulimit -n/);
  t.regex(adviceFor('PCOW_BASE_MISSING', 5) ?? '', /dmesg/);
});

test('an error with nothing but an errno has the advice for that errno', (t) => {
  t.regex(adviceFor('PCOW_IO', 24) ?? '', /ulimit -n/);
  t.regex(adviceFor('PCOW_NO_SPACE', 28) ?? '', /^free space on the filesystem of the image/);
  t.regex(adviceFor('PCOW_NO_SPACE', 122) ?? '', /quota raised/);
  t.is(adviceFor('PCOW_INVALID'), undefined);
});

test('an error may have its own next step, or none', async (t) => {
  t.is(adviceFor('PCOW_CORRUPT', undefined, 'send it once more'), 'send it once more');
  t.is(adviceFor('PCOW_CORRUPT', undefined, null), undefined);
  const fail = (error: Error) =>
    advising({ PCOW_IN_USE: 'for this' }, () => Promise.reject(error)).catch((it: unknown) =>
      explained(it),
    );
  t.like(await fail(new PcowError('PCOW_IN_USE', 'a')), { message: 'a', hint: 'for this' });
  t.like(await fail(new Failure('PCOW_IN_USE', 'a', 'its own')), { hint: 'its own' });
  t.like(await fail(new PcowError('PCOW_EXISTS', 'a')), { hint: 'choose another name' });
});

test('commit of an image with snapshots: the obstacle is the snapshots, not other images', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await succeeds(t, pcow('create', 'base', '1M'));
  await succeeds(t, pcow('clone', 'base', 'vm;1'));
  await succeeds(t, pcow('snapshot', 'vm;1@a'));
  const { exit, stderr } = await pcow('commit', 'vm;1');
  t.is(exit, 6);
  t.regex(stderr, /has snapshots \(a\)/);
  t.regex(stderr, /“pcow list 'vm;1'” shows them; a clone: pcow clone 'vm;1' NEW/);
  t.notRegex(stderr, /those images/);
});

test.serial('a user without the right to an image in a mount is not told to unmount', async (t) => {
  const scratch = await scratchDirectory(t);
  for (const name of ['images', 'mnt']) await mkdir(path.join(scratch, name));
  await succeeds(t, pcowIn(scratch)('create', 'images/vm1', '1M'));
  await chmod(path.join(scratch, 'images/vm1.pcow'), 0o600);
  await chmod(scratch, 0o711);
  await mounted(t, path.join(scratch, 'images'), path.join(scratch, 'mnt'), '--allow-other');
  const shell = await shellIn(t, scratch);
  for (const words of [
    'snapshot mnt/vm1@x',
    'delete mnt/vm1@x',
    'rename mnt/vm1@x y',
    'rm mnt/vm1',
  ]) {
    const outcome = shell(`${NOBODY} node ${pcowProgram} ${words}`);
    await fails(t, outcome, 7, /right|may not/);
    t.notRegex((await outcome).stderr, /umount|end the mount/, words);
  }
});
