/**
 * Commands and options that users of qemu-img, ZFS and LVM type: they work, or the message names
 * the equivalent.
 */
import { mkdir, rename } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { commandInstead, ownOptionInstead } from '../../cli/words-of-other-programs.js';
import { pcowProgram } from '../../cli/pcow-program.js';
import { naturalOrder } from '../../src/images/natural-order.js';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { working } from '../stream/images.js';
import { fails, pcowIn, shellIn, succeeds, type Run } from './outcome.js';

interface Place {
  directory: string;
  pcow: Run;
}

async function place(t: ExecutionContext<unknown>): Promise<Place> {
  const directory = await scratchDirectory(t);
  return { directory, pcow: pcowIn(directory) };
}

async function snapshotsOf(
  t: ExecutionContext<unknown>,
  pcow: Run,
  image: string,
): Promise<string[]> {
  const { snapshots } = JSON.parse(await succeeds(t, pcow('list', image, '--json'))) as {
    snapshots: { name: string }[];
  };
  return snapshots.map(({ name }) => name);
}

test('commands and options of other programs: the message names the equivalent', async (t) => {
  const { pcow } = await place(t);
  await fails(
    t,
    pcow('remove', 'vm1'),
    2,
    /unknown command "remove"/,
    /“pcow rm” deletes an image, “pcow delete” a snapshot/,
  );
  await fails(t, pcow('snap'), 2, /“pcow snapshot IMAGE@NAME”/);
  for (const word of ['hold', 'release', 'holds']) {
    await fails(
      t,
      pcow(word, 'vm1@one'),
      2,
      /“pcow clone IMAGE@NAME keep-NAME” keeps a snapshot/,
      /“pcow rm keep-NAME”/,
    );
  }
  await fails(t, pcow('toString'), 2, /unknown command 'toString'/);
  await fails(
    t,
    pcow('snapshot', '-c', 'one', 'vm1'),
    2,
    /unknown option "-c"/,
    /pcow snapshot IMAGE@NAME/,
  );
  await fails(t, pcow('check', '-r', 'all', 'vm1'), 2, /--repair/);
  await fails(t, pcow('rename', 'none@one', 'two'), 4, /no image "none"/);
});

test('none of them is an existing command or option', async (t) => {
  for (const command of (await pcowProgram()).commands) {
    t.is(commandInstead(command.name()), undefined, command.name());
    for (const { long, short } of command.options) {
      for (const flag of [long, short]) {
        // Some of the options for all commands exist in one command.
        if (flag != null)
          t.is(ownOptionInstead(command.name(), flag), undefined, `${command.name()} ${flag}`);
      }
    }
  }
});

test('resize -SIZE makes it smaller by that size, with --shrink', async (t) => {
  const { pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '20M'));
  await fails(
    t,
    pcow('resize', 'vm1', '-5M'),
    3,
    /has 20 MiB.*loses/,
    /pcow resize vm1 -5M --shrink/,
  );
  t.is(await succeeds(t, pcow('resize', 'vm1', '-5M', '--shrink')), 'vm1 has 15 MiB now\n');
  t.is(await succeeds(t, pcow('resize', '--shrink', 'vm1', '-4K')), 'vm1 has 15 MiB now\n');
  await fails(t, pcow('resize', 'vm1', '-1G', '--shrink'), 3, /nothing is left/);
  await fails(t, pcow('resize', 'vm1', '-100', '--shrink'), 3, /not a multiple of 4 KiB/);
});

test('names are in natural order', async (t) => {
  const { pcow } = await place(t);
  for (const name of ['vm10', 'vm2', 'vm1', 'base']) await succeeds(t, pcow('create', name, '1M'));
  const { images } = JSON.parse(await succeeds(t, pcow('list', '--json'))) as {
    images: { name: string }[];
  };
  t.deepEqual(
    images.map(({ name }) => name),
    ['base', 'vm1', 'vm2', 'vm10'],
  );
  const names = [
    'a',
    'a1',
    'a1b',
    'a1b2',
    'a1b10',
    'a01',
    'a2',
    'a9007199254740993',
    'a9007199254740994',
    'b',
  ];
  t.deepEqual([...names].reverse().sort(naturalOrder), names);
});

test('several images for info and check: one that fails does not hide the others', async (t) => {
  const { pcow } = await place(t);
  for (const name of ['vm1', 'vm2']) await succeeds(t, pcow('create', name, '1M'));
  const two = JSON.parse(await succeeds(t, pcow('info', 'vm1', 'vm2', '--json'))) as {
    name: string;
  }[];
  t.deepEqual(
    two.map(({ name }) => name),
    ['vm1', 'vm2'],
  );
  t.regex(
    await succeeds(t, pcow('info', 'vm1', 'vm2')),
    /vm1\.pcow\n[^]*\n\nimage +\S+vm2\.pcow\n/,
  );
  const { exit, stdout, stderr } = await pcow('check', 'vm1', 'none', 'vm2');
  t.is(exit, 4);
  t.regex(stderr, /no image "none"/);
  t.regex(stdout, /vm1\.pcow is sound[^]*vm2\.pcow is sound/);
});

test('delete: several snapshots, by a pattern, with --keep and --dry-run', async (t) => {
  const { pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '1M'));
  for (const name of ['daily-1', 'daily-2', 'weekly', 'daily-3', 'daily-4', 'x1', 'x2']) {
    await succeeds(t, pcow('snapshot', `vm1@${name}`));
  }
  const words = ['delete', 'vm1@daily-*', '--keep', '2'];
  t.is(
    await succeeds(t, pcow(...words, '--dry-run')),
    'would delete vm1@daily-1\nwould delete vm1@daily-2\n',
  );
  t.is((await snapshotsOf(t, pcow, 'vm1')).length, 7);
  t.is(await succeeds(t, pcow(...words)), 'deleted vm1@daily-1\ndeleted vm1@daily-2\n');
  t.is(await succeeds(t, pcow(...words)), 'nothing to delete\n');
  await succeeds(t, pcow('delete', 'vm1@x?', 'vm1@x1'));
  t.deepEqual(await snapshotsOf(t, pcow, 'vm1'), ['weekly', 'daily-3', 'daily-4']);
  await fails(t, pcow('delete', 'vm1@none*'), 4, /no snapshot that matches "none\*"/);

  // Snapshots that others stand on stay, and not every pattern matches automatic snapshots.
  await succeeds(t, pcow('clone', 'vm1@daily-3', 'on-daily'));
  const image = 'vm1';
  const { exit, stdout, stderr } = await pcow('delete', `${image}@*`);
  t.is(exit, 6);
  t.regex(stderr, /daily-3 can't be deleted: on-daily/);
  t.is(stdout, 'deleted vm1@weekly\ndeleted vm1@daily-4\n');
  t.deepEqual(await snapshotsOf(t, pcow, 'vm1'), ['daily-3']);
});

test('a clone works like zfs hold: its snapshot stays, and the refusal names the clone', async (t) => {
  const { directory, pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '1M'));
  for (const name of ['one', 'two', 'three']) {
    await working(path.join(directory, 'vm1.pcow'), (image) => image.write(Buffer.from(name), 0));
    await succeeds(t, pcow('snapshot', `vm1@${name}`));
  }
  await succeeds(t, pcow('clone', 'vm1@one', 'keep-one'));
  // It is also kept under another name, and when the image is rolled back to it.
  await succeeds(t, pcow('rename', 'vm1@one', 'first'));
  await fails(
    t,
    pcow('delete', 'vm1@first'),
    6,
    /vm1@first can't be deleted: keep-one\.pcow stands on it/,
    /pcow rm/,
  );
  const { exit, stdout, stderr } = await pcow('delete', 'vm1@*', '--keep', '0');
  t.is(exit, 6);
  t.regex(stderr, /vm1@first can't be deleted: keep-one/);
  t.is(stdout, 'deleted vm1@two\ndeleted vm1@three\n');
  await fails(t, pcow('rm', 'vm1'), 6, /keep-one\.pcow stands on it/);
  await succeeds(t, pcow('rollback', 'vm1@first'));
  t.deepEqual(await snapshotsOf(t, pcow, 'vm1'), ['first']);
  await succeeds(t, pcow('rm', 'keep-one'));
  await succeeds(t, pcow('delete', 'vm1@first'));
});

test('a snapshot whose name looks like a pattern is found by that name', async (t) => {
  const { pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '1M'));
  for (const name of ['a*', 'ab', 'ac']) await succeeds(t, pcow('snapshot', `vm1@${name}`));
  t.is(await succeeds(t, pcow('delete', 'vm1@a*')), 'deleted vm1@a*\n');
  t.deepEqual(await snapshotsOf(t, pcow, 'vm1'), ['ab', 'ac']);
});

test('renaming a snapshot does not affect clones that stand on it', async (t) => {
  const { directory, pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '1M'));
  for (const name of ['one', 'other']) await succeeds(t, pcow('snapshot', `vm1@${name}`));
  await succeeds(t, pcow('clone', 'vm1@one', 'child'));
  t.is(await succeeds(t, pcow('rename', 'vm1@one', 'two')), 'vm1@one is now vm1@two\n');
  t.deepEqual(await snapshotsOf(t, pcow, 'vm1'), ['two', 'other']);
  t.regex(await succeeds(t, pcow('info', 'child')), /^base +vm1\.pcow@two/m);
  await succeeds(t, pcow('check', 'vm1', 'child'));
  await fails(t, pcow('delete', 'vm1@two'), 6, /child\.pcow stands on it/);
  await fails(t, pcow('delete', 'vm1@one'), 4, /no snapshot named one/);

  // As in ZFS, with the image or only the @.
  await succeeds(t, pcow('rename', 'vm1@two', '@three'));
  const said = JSON.parse(
    await succeeds(t, pcow('rename', 'vm1@three', 'vm1@four', '--json')),
  ) as unknown;
  t.deepEqual(said, { image: path.join(directory, 'vm1.pcow'), from: 'three', to: 'four' });

  await fails(t, pcow('rename', 'vm1@four', 'other'), 5, /already has a snapshot named other/);
  await fails(t, pcow('rename', 'vm1@four', 'four'), 5, /already has a snapshot named four/);
  await fails(t, pcow('rename', 'vm1@none', 'x'), 4, /no snapshot named none/);
  for (const bad of ['', 'a b', '..', 'a/b', 'x'.repeat(256)])
    await fails(t, pcow('rename', 'vm1@four', bad), 3, /name/);
  await fails(
    t,
    pcow('rename', 'vm1@four', 'vm2@x'),
    3,
    /another image/,
    /pcow rename vm1@four vm1@x/,
  );
  t.deepEqual(await snapshotsOf(t, pcow, 'vm1'), ['four', 'other']);

  // A deleted snapshot on which two layers stand has no name any more; its name is free.
  await succeeds(t, pcow('rollback', 'vm1@other'));
  await succeeds(t, pcow('snapshot', 'vm1@third'));
  await succeeds(t, pcow('rollback', 'vm1@other'));
  await succeeds(t, pcow('delete', 'vm1@other'));
  await fails(t, pcow('rename', 'vm1@other', 'x'), 4, /no snapshot named other/);
  await succeeds(t, pcow('rename', 'vm1@third', 'other'));
});

test('a renamed automatic snapshot is an ordinary one', async (t) => {
  const { directory, pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '1M'));
  await working(path.join(directory, 'vm1.pcow'), (image) => image.write(Buffer.from('x'), 0));
  await succeeds(t, pcow('clone', 'vm1', 'child'));
  const [automatic] = await snapshotsOf(t, pcow, 'vm1');
  t.regex(await succeeds(t, pcow('list', 'vm1')), /\(automatic\)/);
  await succeeds(t, pcow('rename', `vm1@${automatic ?? ''}`, 'golden'));
  t.notRegex(await succeeds(t, pcow('list', 'vm1')), /\(automatic\)/);
});

test.serial('umount by the image directory', async (t) => {
  const { directory, pcow } = await place(t);
  const [images, point] = ['images', 'mnt'].map((name) => path.join(directory, name)) as [
    string,
    string,
  ];
  await mkdir(images);
  await mkdir(point);
  await succeeds(t, pcow('create', 'images/vm1', '1M'));
  await mounted(t, images, point);
  t.is(await succeeds(t, pcow('umount', 'images')), `${point} is unmounted\n`);
  await fails(t, pcow('umount', 'images'), 11, /no image directory is mounted on images/);
  await rename(images, `${images}2`);
  await fails(t, pcow('umount', 'images'), 11, /images/);
});

test('an image that is half received is shown as such', async (t) => {
  const { directory, pcow } = await place(t);
  await succeeds(t, pcow('create', 'vm1', '8M'));
  await working(path.join(directory, 'vm1.pcow'), (image) =>
    image.write(Buffer.alloc(8 * 2 ** 20, 1), 0),
  );
  await succeeds(t, pcow('snapshot', 'vm1@monday'));
  const shell = await shellIn(t, directory);
  await shell('pcow send vm1@monday | head -c 3000000 | pcow receive copy');
  t.regex(
    await succeeds(t, pcow('list', '.')),
    /^copy .* half received: monday up to \S+ MiB of 8 MiB$/m,
  );
  t.regex(await succeeds(t, pcow('info', 'copy')), /half received: monday/);
  const { receiving } = JSON.parse(await succeeds(t, pcow('info', 'copy', '--json'))) as {
    receiving: unknown;
  };
  t.like(receiving, { snapshot: 'monday', size: 8 * 2 ** 20 });
  const token = (await succeeds(t, pcow('receive', '--resume-token', 'copy'))).trim();
  t.is((await shell(`pcow send vm1 --resume ${token} | pcow receive copy`)).exit, 0);
  t.notRegex(await succeeds(t, pcow('list', '.')), /half received/);
});

test.serial('list without arguments: all mounts, and the images here', async (t) => {
  const { directory, pcow } = await place(t);
  const [images, point] = ['images', 'mnt'].map((name) => path.join(directory, name)) as [
    string,
    string,
  ];
  await mkdir(images);
  await mkdir(point);
  await mounted(t, images, point);
  const shown = await succeeds(t, pcow('list'));
  t.true(
    shown.split('\n').some((line) => line.startsWith(`${images} `) && line.endsWith(point)),
    shown,
  );
  await succeeds(t, pcow('create', 'here', '1M'));
  t.regex(await succeeds(t, pcow('list')), /\nhere +1 MiB/);
  const { mounts } = JSON.parse(await succeeds(t, pcow('list', '--json'))) as {
    mounts: { mountpoint: string }[];
  };
  t.true(mounts.some(({ mountpoint }) => mountpoint === point));
});

test('a clone outside of its base’s directory causes a warning', async (t) => {
  const { directory, pcow } = await place(t);
  await mkdir(path.join(directory, 'elsewhere'));
  await succeeds(t, pcow('create', 'base', '1M'));
  for (const words of [
    ['clone', 'base', 'elsewhere/vm1'],
    ['create', '-b', 'base', 'elsewhere/vm2'],
  ]) {
    const { exit, stderr } = await pcow(...words);
    t.is(exit, 0, stderr);
    t.regex(stderr, /warning: vm\d stands on \S+base\.pcow, in another directory/);
  }
  t.is((await pcow('clone', 'base', 'vm3')).stderr, '');
});

test('the commands in hints are valid for a shell', async (t) => {
  const { directory, pcow } = await place(t);
  await mkdir(path.join(directory, "it's mine"));
  await succeeds(t, pcow('create', "it's mine/vm1", '20M'));
  const { stderr } = await pcow('resize', "it's mine/vm1", '10M');
  const line = /if you want that: (.*)\n/.exec(stderr)?.[1] ?? '';
  t.is(line, "pcow resize 'it'\\''s mine/vm1' 10M --shrink");
  t.like(await (await shellIn(t, directory))(line), { exit: 0, stdout: 'vm1 has 10 MiB now\n' });
});
