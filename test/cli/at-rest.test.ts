/** Each command on images that are not mounted. */
import { access, mkdir, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { firstByte } from '../helpers/first-byte.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds } from './outcome.js';

async function fill(file: string, byte: number): Promise<void> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(4096, byte), 0);
  await image.close();
}

test('create makes an image, with or without .pcow, and prints its properties', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  t.is(
    await succeeds(t, pcow('create', 'vm1', '10G')),
    `created ${directory}/vm1.pcow: 10 GiB, blocks of 64 KiB\n`,
  );
  await succeeds(t, pcow('create', 'vm2.pcow', '1.5G', '--block-size', '4K'));
  const image = await Image.open(path.join(directory, 'vm2.pcow'));
  t.is(image.info().size, 1.5 * 2 ** 30);
  t.is(image.info().blockSize, 4096);
  await image.close();
});

test('create --force replaces an image', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await succeeds(t, pcow('create', 'vm1', '1G'));
  await succeeds(t, pcow('create', 'vm1', '2G', '--force'));
  t.regex(await succeeds(t, pcow('info', 'vm1')), /2 GiB/);
});

test('info shows size, base, chain and state', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'base', '1G'));
  await succeeds(t, pcow('snapshot', 'base@installed'));
  await succeeds(t, pcow('create', 'vm1', '--base', 'base@installed'));
  const text = await succeeds(t, pcow('info', 'vm1.pcow'));
  t.regex(text, /^size +1 GiB \(1073741824 bytes\)$/m);
  t.regex(text, /^base +base\.pcow@installed$/m);
  t.regex(text, /^chain +vm1\.pcow → base\.pcow@installed$/m);
  t.regex(text, /^state +closed$/m);
  t.notRegex(text, /mounted/);
});

test('snapshot, rollback, list and delete', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const file = path.join(directory, 'vm1.pcow');
  await succeeds(t, pcow('create', 'vm1', '1G'));
  t.regex(await succeeds(t, pcow('list', 'vm1')), /no snapshots/);
  await fill(file, 1);
  t.is(await succeeds(t, pcow('snapshot', 'vm1@one')), 'snapshot vm1@one taken\n');
  await fill(file, 2);
  await succeeds(t, pcow('snapshot', 'vm1.pcow@two'));
  await fill(file, 3);

  t.is(await succeeds(t, pcow('rollback', 'vm1@one')), 'vm1 is back at one\n');
  t.is(await firstByte(file), 1);
  const lines = (await succeeds(t, pcow('list', 'vm1'))).split('\n').slice(2);
  t.deepEqual(
    lines.map((line) => /^.*?(one|two|\(active\))/.exec(line)?.[0]),
    ['one', '├─ two', '└─ (active)', undefined],
  );
  t.regex(lines[0] ?? '', /\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +4 KiB +1 GiB$/);

  await succeeds(t, pcow('rollback', 'vm1@two'));
  t.is(await firstByte(file), 2);
  t.is(await succeeds(t, pcow('delete', 'vm1@one')), 'deleted vm1@one\n');
  t.is(await firstByte(file), 2);
  t.notRegex(await succeeds(t, pcow('list', 'vm1')), /one/);
});

test('one snapshot of several images', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await succeeds(t, pcow('create', 'disk', '1G'));
  await succeeds(t, pcow('create', 'log', '1G'));
  await succeeds(t, pcow('snapshot', 'disk@both', 'log@both'));
  t.regex(await succeeds(t, pcow('list', 'disk')), /both/);
  t.regex(await succeeds(t, pcow('list', 'log')), /both/);
});

test('a clone shares the data of its base, and later changes are separate', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const [vm1, vm2, old] = ['vm1.pcow', 'vm2.pcow', 'old.pcow'].map((name) =>
    path.join(directory, name),
  );
  await succeeds(t, pcow('create', 'vm1', '1G'));
  await fill(vm1 ?? '', 1);
  await succeeds(t, pcow('snapshot', 'vm1@one'));
  await fill(vm1 ?? '', 2);
  await succeeds(t, pcow('clone', 'vm1', 'vm2'));
  await succeeds(t, pcow('clone', 'vm1@one', 'old'));
  await fill(vm1 ?? '', 3);
  t.is(await firstByte(vm2 ?? ''), 2);
  t.is(await firstByte(old ?? ''), 1);
  await fill(vm2 ?? '', 4);
  t.is(await firstByte(vm1 ?? ''), 3);
  t.regex(await succeeds(t, pcow('list', 'vm1')), /auto-\S+ \(automatic\)/);
});

test('resize grows', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  await succeeds(t, pcow('create', 'vm1', '1G'));
  t.is(await succeeds(t, pcow('resize', 'vm1', '2G')), 'vm1 has 2 GiB now\n');
  await succeeds(t, pcow('resize', 'vm1', '+4K'));
  await fails(
    t,
    pcow('resize', 'vm1', '+1K'),
    3,
    /makes it 2147488768 bytes, which is not a multiple of 4 KiB/,
  );
  await fails(t, pcow('resize', 'vm1', '+64T'), 3, /over the limit of 64 TiB/);
});

test('list of a directory shows every image, and what is wrong with a damaged one', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  t.regex(await succeeds(t, pcow('list', '.')), /not mounted\nno images/);
  await succeeds(t, pcow('create', 'base', '1G'));
  await succeeds(t, pcow('create', 'lost', '1G'));
  await succeeds(t, pcow('create', 'vm1', '--base', 'lost'));
  await rename(path.join(directory, 'lost.pcow'), path.join(directory, 'lost.gone'));
  await writeFile(path.join(directory, 'text.pcow'), 'not an image');
  const text = await succeeds(t, pcow('list', directory));
  t.regex(text, /^base +1 GiB .* closed$/m);
  t.regex(text, /^text .*not a Pcow image/m);
  t.regex(text, /^vm1 .*lost\.pcow/m);
});

test('an image whose path holds “@” is found', async (t) => {
  const directory = await scratchDirectory(t);
  await mkdir(path.join(directory, 'me@home'));
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'me@home/vm1', '1G'));
  await succeeds(t, pcow('snapshot', 'me@home/vm1@one'));
  t.regex(await succeeds(t, pcow('list', 'me@home/vm1')), /one/);
});

test('help has examples for every command, and requesting it is no failure', async (t) => {
  const pcow = pcowIn(await scratchDirectory(t));
  const overview = await succeeds(t, pcow('--help'));
  const commands = [...overview.matchAll(/^ {2}([a-z-]+)(?= .*\S {2})/gm)].map(
    ([, name]) => name ?? '',
  );
  t.true(commands.includes('create') && commands.includes('qemu-args'), overview);
  for (const command of commands.filter((name) => name !== 'help')) {
    t.regex(await succeeds(t, pcow(command, '--help')), /\nExamples:\n {2}\S/, command);
  }
  t.regex(await succeeds(t, pcow('help', 'exit-codes')), /130 +interrupted/);
  t.regex(await succeeds(t, pcow('--version')), /^\d+\.\d+\.\d+\n$/);
});

test('output to anything but a terminal has no colours, even if CI requests them', async (t) => {
  const directory = await scratchDirectory(t);
  process.env.CI = 'true';
  t.teardown(() => delete process.env.CI);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm1', '1G'));
  t.false((await succeeds(t, pcow('list'))).includes('\u001b'));
  t.false((await pcow('info', 'none')).stderr.includes('\u001b'));
});

test('a file with another name can be an image, too, but no mount shows it', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm1', '1G'));
  await rename(path.join(directory, 'vm1.pcow'), path.join(directory, 'vm1.img'));
  t.regex(await succeeds(t, pcow('info', 'vm1.img')), /1 GiB/);
  await t.throwsAsync(access(path.join(directory, 'vm1.pcow')));
});
