import { copyFile, readdir, readFile, rename, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { Image, removeRemains, standingOn, throughDraft } from '../../src/engine/index.js';
import { lockWriter } from '../../src/engine/file-lock.js';
import { scratchDirectory } from '../helpers/scratch.js';

const MiB = 1 << 20;

async function stage(
  t: ExecutionContext,
): Promise<{ directory: string; at: (name: string) => string }> {
  const directory = await scratchDirectory(t);
  return { directory, at: (name) => path.join(directory, name) };
}

const write = (text: string) => (draft: string) => writeFile(draft, text);

test('a file appears when it is complete, and replaces another one only if requested', async (t) => {
  const { directory, at } = await stage(t);
  await throughDraft(at('file'), {}, async (draft) => {
    await writeFile(draft, 'one');
    t.false((await readdir(directory)).includes('file'));
  });
  await t.throwsAsync(throughDraft(at('file'), {}, write('two')), { code: 'PCOW_EXISTS' });
  await throughDraft(at('file'), { replace: true }, write('three'));
  await t.throwsAsync(
    throughDraft(at('file'), { replace: true }, () => Promise.reject(new Error('it failed'))),
    { message: 'it failed' },
  );
  t.is(await readFile(at('file'), 'utf8'), 'three');
  t.deepEqual(await readdir(directory), ['file']);
  // A file that is made meanwhile is treated like one that existed before.
  await t.throwsAsync(
    throughDraft(at('new'), {}, () => writeFile(at('new'), 'theirs')),
    { code: 'PCOW_EXISTS' },
  );
  t.is(await readFile(at('new'), 'utf8'), 'theirs');
  await throughDraft(at('newer'), { replace: true }, async (draft) => {
    await writeFile(at('newer'), 'theirs');
    await writeFile(draft, 'ours');
  });
  t.is(await readFile(at('newer'), 'utf8'), 'ours');
});

test('an image that is open for writing is not replaced, nor one that others stand on, nor the source itself', async (t) => {
  const { at } = await stage(t);
  await Image.create(at('vm.pcow'), { size: MiB });
  const replaced = (making = {}) =>
    throughDraft(at('vm.pcow'), { replace: true, ...making }, write('new'));
  const image = await Image.open(at('vm.pcow'), { write: true });
  await t.throwsAsync(replaced(), {
    code: 'PCOW_LOCKED',
    message: /vm\.pcow is open for writing by .+; it is not replaced/,
  });
  await t.throwsAsync(Image.create(at('vm.pcow'), { size: MiB, force: true }), {
    code: 'PCOW_LOCKED',
  });
  await image.snapshot('s');
  await image.close();
  await Image.create(at('child.pcow'), { base: { path: at('vm.pcow'), snapshot: 's' } });
  await t.throwsAsync(replaced(), { code: 'PCOW_IN_USE', message: /child\.pcow stands on it/ });
  await t.throwsAsync(Image.create(at('vm.pcow'), { size: MiB, force: true }), {
    code: 'PCOW_IN_USE',
  });
  await symlink('vm.pcow', at('link'));
  await t.throwsAsync(replaced({ sources: [at('link')] }), {
    code: 'PCOW_INVALID',
    message: /choose another name/,
  });
  await rename(at('child.pcow'), at('child'));
  await replaced();
  t.is(await readFile(at('vm.pcow'), 'utf8'), 'new');
});

test('a file that is about to be replaced cannot be opened for writing, and no image can be made to stand on it', async (t) => {
  const { at } = await stage(t);
  await Image.create(at('vm.pcow'), { size: MiB });
  await throughDraft(at('vm.pcow'), { replace: true }, async (draft) => {
    await t.throwsAsync(Image.open(at('vm.pcow'), { write: true }), { code: 'PCOW_LOCKED' });
    await copyFile(at('vm.pcow'), draft);
  });
  const writer = await lockWriter(at('vm.pcow'));
  await t.throwsAsync(Image.open(at('vm.pcow'), { write: true }), { code: 'PCOW_LOCKED' });
  writer.release();
  const standing = standingOn(at('vm.pcow'), () =>
    throughDraft(at('child.pcow'), {}, (draft) => writeFile(draft, 'child')),
  );
  await throughDraft(at('vm.pcow'), { replace: true }, write('new'));
  await standing;
  await (await Image.open(at('vm.pcow')).catch(() => null))?.close();
  t.is(await readFile(at('vm.pcow'), 'utf8'), 'new');
});

test('a draft is removed when its maker is gone, and never while it is made', async (t) => {
  const { directory, at } = await stage(t);
  // As left by killed commands: of this version, and of an earlier one, which used the name of the
  // process.
  await writeFile(at('.big.pcow.0b3f5c1e-1111-4222-8333-444455556666.pcow-draft'), 'left');
  await writeFile(at(`.big.pcow.${process.pid}.pcow-draft`), 'left');
  await throughDraft(at('big.pcow'), {}, async (draft) => {
    // Neither does another command that makes a file here, nor a mount that begins.
    t.deepEqual(await removeRemains(directory), []);
    await Image.create(at('small.pcow'), { size: MiB });
    t.deepEqual(await readdir(directory), [path.basename(draft), 'small.pcow'].sort());
    await writeFile(draft, 'complete');
  });
  t.is(await readFile(at('big.pcow'), 'utf8'), 'complete');
  t.deepEqual(await readdir(directory), ['big.pcow', 'small.pcow']);
});
