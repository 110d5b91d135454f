/** The unit of systemd, as far as it depends on what the programs do. The unit itself runs on a fresh machine only. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { fails, pcowIn } from '../cli/outcome.js';
import { scratchDirectory } from '../helpers/scratch.js';

const UNIT = new URL('../../../packaging/systemd/pcow@.service', import.meta.url);

/** The values of a setting, words apart. */
async function setting(name: string): Promise<string[]> {
  const text = await readFile(UNIT, 'utf8');
  return [...text.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].flatMap(([, value = '']) => value.split(' '));
}

test('a mount that fails by its options is not started again', async (t) => {
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
  // Killed, or a mount that could not be made: another one that is just ending is gone at the next try.
  for (const exit of ['1', '11']) t.false(prevented.includes(exit), exit);
});

test('a mount that fails at every start is given up', async (t) => {
  const [pause, burst, interval] = await Promise.all(
    ['RestartSec', 'StartLimitBurst', 'StartLimitIntervalSec'].map(async (name) => Number((await setting(name))[0])),
  );
  // A start that fails takes some seconds.
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
