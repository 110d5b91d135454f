/**
 * Unusual names: with characters that shells interpret, ending in `.pcow` twice, not UTF-8, with
 * control characters.
 */
import { copyFile, mkdir, readdir, rename } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { table } from '../../cli/output/table.js';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, type Run, shellIn, succeeds } from './outcome.js';

interface Place {
  directory: string;
  pcow: Run;
}

/** With an empty directory images/, and mnt/ to mount it on. */
async function place(t: ExecutionContext<unknown>): Promise<Place> {
  const directory = await scratchDirectory(t);
  for (const name of ['images', 'mnt']) await mkdir(path.join(directory, name));
  return { directory, pcow: pcowIn(directory) };
}

test('characters that a shell interprets are quoted in suggested commands', async (t) => {
  const { directory, pcow } = await place(t);
  const name = "it's;$(x)*";
  await succeeds(t, pcow('create', name, '1M'));
  const { stderr } = await pcow('snapshot', name);
  const typed = /write IMAGE@NAME: (.*)\n/.exec(stderr)?.[1] ?? '';
  const shell = await shellIn(t, directory);
  t.is(await succeeds(t, shell(`pcow snapshot ${typed}`)), `snapshot ${name}@NAME taken\n`);
  await succeeds(t, pcow('create', './-f', '1M'));
  const dash = await pcow('snapshot', './-f');
  t.regex(dash.stderr, /write IMAGE@NAME: \.\/-f@NAME\n/);
});

test.serial('an image whose file ends in .pcow twice: each name means one image', async (t) => {
  const { directory, pcow } = await place(t);
  await fails(t, pcow('create', 'images/c.pcow.pcow', '1M'), 3, /end in \.pcow twice/);
  await succeeds(t, pcow('create', 'images/c.pcow', '1M'));
  await mounted(t, path.join(directory, 'images'), path.join(directory, 'mnt'));
  // There is no flat file with that name: the image file with this name is not meant.
  await fails(t, pcow('rm', 'mnt/c.pcow'), 4, /no image "mnt\/c\.pcow"/);
  await fails(t, pcow('rename', 'mnt/c', 'd.pcow.pcow'), 3, /twice/);
  await copyFile(path.join(directory, 'images/c.pcow'), path.join(directory, 'images/c.pcow.pcow'));
  t.deepEqual(await readdir(path.join(directory, 'mnt')), ['c', 'c.pcow']);
  t.is(await succeeds(t, pcow('rm', 'mnt/c.pcow')), `deleted ${directory}/images/c.pcow.pcow\n`);
  t.deepEqual(await readdir(path.join(directory, 'images')), ['c.pcow']);
});

test.serial('a file whose name is not UTF-8 is listed, and logged by the mount', async (t) => {
  const { directory, pcow } = await place(t);
  await succeeds(t, pcow('create', 'images/vm1', '1M'));
  const nameless = Buffer.from(`${directory}/images/b\xff.pcow`, 'latin1');
  await rename(path.join(directory, 'images/vm1.pcow'), nameless);
  const cure = new RegExp(
    `its name is not UTF-8.* \\(cd (?:${directory}/)?images; mv \\./b\\?\\.pcow NAME\\.pcow\\)`,
  );
  t.regex(await succeeds(t, pcow('list', 'images')), cure);
  const { stdout } = await pcow('doctor', 'images');
  t.regex(stdout, /is not a valid name: it is not UTF-8/);
  const found = await pcow('mount', 'images', 'mnt', '--log', 'log');
  t.teardown(() => pcow('umount', 'mnt'));
  t.is(found.exit, 0, found.stderr);
  t.regex(found.stderr, cure);
  const shell = await shellIn(t, path.join(directory, 'images'));
  await succeeds(t, shell('mv ./b?.pcow NAME.pcow'));
  t.deepEqual(await readdir(path.join(directory, 'mnt')), ['NAME']);
});

test('a control character in a name is shown as an escape, and a row stays one line', (t) => {
  const rows = table([{ title: 'image' }], [['a\nb\u{9b}2J\u{1b}c'], ['ä\u{a0}ö']]).split('\n');
  t.is(rows[1], 'a\\u000ab\\u009b2J\\u001bc');
  t.is(rows[2], 'ä\u{a0}ö');
});
