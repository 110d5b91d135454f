import { copyFile, link, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import test from 'ava';

import { Image, isPcowError, renameImage } from '../../src/engine/index.js';
import { addName, giveName, relationOf, removeName } from '../../src/engine/names.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { caseIgnoringDirectory } from '../helpers/small-disk.js';

const repository = fileURLToPath(new URL('../../../', import.meta.url));

test('two paths: one name, two names of one file, or two files', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  await writeFile(at('file'), 'a');
  await writeFile(at('other'), 'a');
  await link(at('file'), at('second'));
  await symlink('file', at('link'));
  await symlink(directory, at('here'));
  t.is(await relationOf(at('file'), at('other')), 'apart');
  t.is(await relationOf(at('file'), at('none')), 'apart');
  t.is(await relationOf(at('none'), at('none')), 'apart');
  t.is(await relationOf(at('file'), at('link')), 'apart', 'a symbolic link is a file of its own');
  t.is(await relationOf(at('file'), at('second')), 'two names');
  t.is(await relationOf(at('file'), at('file')), 'one name');
  t.is(await relationOf(at('file'), at('here/file')), 'one name');
  t.is(await relationOf(at('file'), at('here/second')), 'two names');
});

test('a name is given, added and removed; nothing is replaced by default', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  await writeFile(at('draft'), 'new');
  await writeFile(at('there'), 'old');
  await t.throwsAsync(giveName(at('draft'), at('there'), false), { code: 'PCOW_EXISTS' });
  t.is(await readFile(at('there'), 'utf8'), 'old');
  await giveName(at('draft'), at('there'), true);
  t.is(await readFile(at('there'), 'utf8'), 'new');
  await mkdir(at('elsewhere'));
  await giveName(at('there'), at('elsewhere/moved'), false);
  await addName(at('elsewhere/moved'), at('second'));
  await addName(at('elsewhere/moved'), at('second'));
  await writeFile(at('draft'), 'another');
  await t.throwsAsync(addName(at('elsewhere/moved'), at('draft')), { code: 'PCOW_EXISTS' });
  await removeName(at('draft'));
  await removeName(at('elsewhere/moved'));
  t.deepEqual(await readdir(directory), ['elsewhere', 'second']);
  t.is(await readFile(at('second'), 'utf8'), 'new');
});

const nobody = {
  open: () => Promise.reject(new Error('nothing stands on it')),
  close: () => Promise.resolve(),
};

test('an image is not renamed onto a symbolic link to it; one with two names loses the old one', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, `${name}.pcow`);
  await Image.create(at('vm1'), { size: 1 << 20 });
  await symlink('vm1.pcow', at('current'));
  const before = await readdir(directory);
  await t.throwsAsync(renameImage(at('vm1'), at('current'), nobody), { code: 'PCOW_EXISTS' });
  t.deepEqual(await readdir(directory), before);
  // The state after a rename that was killed in the middle.
  await link(at('vm1'), at('web'));
  await renameImage(at('vm1'), at('web'), nobody);
  t.deepEqual(await readdir(directory), ['current.pcow', 'web.pcow']);
  await (await Image.open(at('web'))).close();
});

test('an image is not renamed to another spelling of its name if the directory ignores case', async (t) => {
  const directory = await caseIgnoringDirectory(t);
  if (directory === null) {
    t.pass('this kernel or this user has no file system that ignores case');
    return;
  }
  const at = (name: string) => path.join(directory, `${name}.pcow`);
  await Image.create(at('vm1'), { size: 1 << 20 });
  t.is(await relationOf(at('vm1'), at('VM1')), 'one name');
  const error = await t.throwsAsync(renameImage(at('vm1'), at('VM1'), nobody));
  t.true(isPcowError(error, 'PCOW_EXISTS'));
  t.regex(error?.message ?? '', /ignores case: rename the image to a different name first/);
  t.deepEqual(await readdir(directory), ['vm1.pcow']);
  await renameImage(at('vm1'), at('other'), nobody);
  await renameImage(at('other'), at('VM1'), nobody);
  t.deepEqual(await readdir(directory), ['VM1.pcow']);
});

test('a rename updates the images that stand on the image, and not those that stand on a copy of it', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, `${name}.pcow`);
  await Image.create(at('base'), { size: 1 << 20 });
  const base = await Image.open(at('base'), { write: true });
  await base.snapshot('s');
  await base.close();
  await copyFile(at('base'), at('copy'));
  await Image.create(at('child'), { base: { path: at('base'), snapshot: 's' } });
  await Image.create(at('other'), { base: { path: at('copy'), snapshot: 's' } });
  await renameImage(at('base'), at('web'), {
    open: async ({ image, layer }) => ({ image: await Image.open(image, { write: true }), layer }),
    close: ({ image }) => image.close(),
  });
  t.is((await Image.baseOf(at('child')))?.path, 'web.pcow');
  t.is((await Image.baseOf(at('other')))?.path, 'copy.pcow');
  await (await Image.open(at('child'))).close();
});

/**
 * Code in which other kinds of files are made and removed: sockets, directories and the programs'
 * own files.
 */
const OTHERS = [
  'cli/doctor/directory.ts', // a scratch directory
  'src/engine/unnamed-file.ts', // files without a name
  'src/client/control.ts', // asks the mount, through rename(2)
  'native/engine/image/names.cc',
  'native/engine/image/create.cc', // a draft that was not completed
  'native/addon/attach_server.cc', // a socket
  'native/addon/attach_listener.cc',
];

test('names are given and removed in one module only', async (t) => {
  const removes =
    /\b(?:unlink|unlinkat|link|linkat|rename|renameat2?|rm|rmSync|unlinkSync|renameSync|linkSync)\(/;
  const imports = /import \{[^}]*\b(?:unlink|link|rename|rm|rmdir)\b[^}]*\} from 'node:fs/;
  const found: string[] = [];
  for (const part of ['src', 'cli', 'native/engine', 'native/addon', 'native/monitor']) {
    for (const name of await readdir(path.join(repository, part), { recursive: true })) {
      const file = path.join(part, name);
      const pattern = name.endsWith('.ts') ? imports : /\.(cc|h)$/.test(name) ? removes : null;
      if (pattern === null || OTHERS.includes(file)) continue;
      const code = (await readFile(path.join(repository, file), 'utf8')).replace(/\/\/.*$/gm, '');
      if (pattern.test(code)) found.push(file);
    }
  }
  t.deepEqual(
    found,
    [],
    'use src/engine/names.ts or native/engine/image/names.h: they make it durable',
  );
});
