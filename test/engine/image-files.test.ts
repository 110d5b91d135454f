/** Files whose names are not valid text: programs that search a directory must see them. */
import { copyFile, mkdir, open, rename } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  dependants,
  Image,
  imageFilesIn,
  recoverDirectory,
  takingAway,
} from '../../src/engine/index.js';
import { checkNewImageName } from '../../src/images/image-names.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { working } from '../stream/images.js';

/** `directory` with base.pcow, and on it an image whose name is not UTF-8. */
async function withNameless(
  t: ExecutionContext,
): Promise<{ directory: string; base: string; nameless: Buffer }> {
  const directory = await scratchDirectory(t);
  const base = path.join(directory, 'base.pcow');
  await Image.create(base, { size: 2 ** 20 });
  await working(base, (image) => image.snapshot('one'));
  const child = path.join(directory, 'child.pcow');
  await Image.create(child, { base: { path: base, snapshot: 'one' } });
  const nameless = Buffer.concat([
    Buffer.from(`${directory}/b `),
    Buffer.from([0xff, 0xe4]),
    Buffer.from('.pcow'),
  ]);
  await rename(child, nameless);
  return { directory, base, nameless };
}

test('a name that is not UTF-8 is reported, with a command that renames the file', async (t) => {
  const { directory, nameless } = await withNameless(t);
  await mkdir(path.join(directory, 'other'));
  await copyFile(nameless, path.join(directory, 'a\ufffd.pcow'));
  const { names, nameless: found } = await imageFilesIn(directory);
  t.deepEqual(
    names,
    ['a\ufffd.pcow', 'base.pcow'],
    'the sign for what can not be read may be in a name itself',
  );
  t.deepEqual(
    found.map(({ shown, pattern }) => [shown, pattern]),
    [['b\\x20\\xff\\xe4.pcow', './b???.pcow']],
  );
  const { failed } = await recoverDirectory(directory);
  t.is(failed.length, 1);
  t.regex(
    String(failed[0]?.error),
    /b\\x20\\xff\\xe4\.pcow can't be recovered: its name is not UTF-8/,
  );
});

test('an image that stands on a snapshot keeps it, whatever the name of the image is', async (t) => {
  const { directory, base, nameless } = await withNameless(t);
  const standing = await dependants(directory, base);
  t.deepEqual(
    standing.map(({ image }) => image),
    [path.join(directory, 'b\\x20\\xff\\xe4.pcow')],
  );
  const deletion = takingAway({ file: base, what: 'it stays' }, () => Promise.resolve());
  await t.throwsAsync(deletion, {
    code: 'PCOW_IN_USE',
    message: /it stays: b\\x20\\xff\\xe4\.pcow stands on it/,
  });

  // If an image cannot be read, it is unknown on what it stands.
  const handle = await open(nameless, 'r+');
  await handle.write(Buffer.alloc(8192, 0xee), 8, 8192 - 8, 8);
  await handle.close();
  await t.throwsAsync(
    takingAway({ file: base, what: 'it stays' }, () => Promise.resolve()),
    { code: 'PCOW_BUSY', message: /cannot tell whether \S+\\xe4\.pcow stands on/ },
  );
});

test('the names of new images: characters of the shell are allowed, separators of Pcow are not', (t) => {
  for (const name of [
    "it's",
    'a;b',
    '$(id)',
    '`id`',
    '*',
    '?',
    '~',
    '#',
    '!',
    '-rf',
    'a"b',
    'a\\b',
    'ä\u{a0}\u{85}',
    '😀',
  ])
    t.notThrows(() => checkNewImageName(name), name);
  for (const name of [
    '',
    '.',
    '..',
    '.a',
    'a/b',
    'a@b',
    'a b',
    'a\nb',
    'a\tb',
    '\u007f',
    '\ud800',
    'help',
    'status',
    'x'.repeat(251),
  ])
    t.throws(() => checkNewImageName(name), { code: 'PCOW_INVALID' }, JSON.stringify(name));
  t.throws(() => checkNewImageName('c.pcow'), {
    message: /end in \.pcow twice, and look like that of "c"/,
  });
});
