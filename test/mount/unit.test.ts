/**
 * The systemd unit, as far as it depends on the programs. The unit itself runs only on a fresh
 * machine.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { fails, pcowIn } from '../cli/outcome.js';
import { scratchDirectory } from '../helpers/scratch.js';

const UNIT = new URL('../../../packaging/systemd/pcow@.service', import.meta.url);

/** The values of a setting, split into words. */
async function setting(name: string): Promise<string[]> {
  const text = await readFile(UNIT, 'utf8');
  return [...text.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].flatMap(([, value = '']) =>
    value.split(' '),
  );
}

test('a mount that fails because of its options is not started again', async (t) => {
  const directory = await scratchDirectory(t);
  const [start = ''] = /^ExecStart=.*$/m.exec(await readFile(UNIT, 'utf8')) ?? [];
  t.regex(start, /pcow mount --foreground /);
  const prevented = await setting('RestartPreventExitStatus');
  const outcome = await pcowIn(directory)(
    'mount',
    '--foreground',
    '--nonsense',
    directory,
    path.join(directory, 'mnt'),
  );
  await fails(t, Promise.resolve(outcome), 2, /--nonsense/);
  t.true(prevented.includes(String(outcome.exit)));
  // Killed, or a mount that could not be made: if another mount is just ending, the next attempt
  // succeeds.
  for (const exit of ['1', '11']) t.false(prevented.includes(exit), exit);
});

test('a mount that fails at every start is given up', async (t) => {
  const [pause, burst, interval] = await Promise.all(
    ['RestartSec', 'StartLimitBurst', 'StartLimitIntervalSec'].map(async (name) =>
      Number((await setting(name))[0]),
    ),
  );
  // A failing start takes some seconds.
  t.true(((pause ?? NaN) + 5) * (burst ?? NaN) < (interval ?? NaN));
});

test('a name without a file is an error, and guests of either libvirt come after their images', async (t) => {
  t.deepEqual(await setting('AssertPathExists'), ['/etc/pcow/%i.conf']);
  t.deepEqual(await setting('ConditionPathExists'), []);
  const before = await setting('Before');
  for (const service of ['libvirtd.service', 'virtqemud.service', 'libvirt-guests.service']) {
    t.true(before.includes(service), service);
  }
});
