/**
 * The commands on images whose directory is mounted: by the image file and by the flat file,
 * through the control files.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, readFile, rename, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { MiB, type Status } from '../helpers/mount.js';
import { mounted, pcowProgram } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { working } from '../stream/images.js';
import { fails, pcowIn, shellIn, succeeds, type Run } from './outcome.js';

interface Stage {
  scratch: string;
  /** Runs in `scratch`, where images/ is mounted on mnt/, with the images vm1 and vm2 of 1 MiB. */
  pcow: Run;
  flat: string;
  daemon: ChildProcess;
}

async function stage(t: ExecutionContext<unknown>, ...options: string[]): Promise<Stage> {
  const scratch = await scratchDirectory(t);
  await mkdir(path.join(scratch, 'images'));
  await mkdir(path.join(scratch, 'mnt'));
  const pcow = pcowIn(scratch);
  await succeeds(t, pcow('create', 'images/vm1', '1M'));
  await succeeds(t, pcow('create', 'images/vm2', '1M'));
  const daemon = await mounted(
    t,
    path.join(scratch, 'images'),
    path.join(scratch, 'mnt'),
    ...options,
  );
  return { scratch, pcow, flat: path.join(scratch, 'mnt/vm1'), daemon };
}

async function write(file: string, byte: number): Promise<void> {
  const handle = await open(file, 'r+');
  await handle.write(Buffer.alloc(4096, byte), 0, 4096, 0);
  await handle.sync();
  await handle.close();
}

async function firstByte(file: string): Promise<number | undefined> {
  return (await readFile(file)).at(0);
}

test.serial('snapshot, rollback, delete, rename, list and info, by either name', async (t) => {
  const { pcow, flat, scratch, daemon } = await stage(t);
  await write(flat, 1);
  t.is(await succeeds(t, pcow('snapshot', 'mnt/vm1@one')), 'snapshot vm1@one taken\n');
  await write(flat, 2);
  t.is(await succeeds(t, pcow('snapshot', 'images/vm1.pcow@two')), 'snapshot vm1@two taken\n');
  await write(flat, 3);
  t.regex(await succeeds(t, pcow('list', 'mnt/vm1')), /^one .*\n.*two .*\n.*\(active\)/m);
  t.regex(
    await succeeds(t, pcow('list', 'mnt')),
    new RegExp(`images, mounted on ${scratch}/mnt\n`),
  );
  t.regex(await succeeds(t, pcow('list', 'images')), /^vm1 .*\n^vm2 /m);
  t.regex(
    await succeeds(t, pcow('info', 'images/vm1')),
    new RegExp(`^mounted +${scratch}/mnt/vm1$`, 'm'),
  );

  const state = `^state +mounted on ${scratch}/mnt \\(process ${daemon.pid}\\)$`;
  t.regex(await succeeds(t, pcow('info', 'images/vm1')), new RegExp(state, 'm'));

  await succeeds(t, pcow('rollback', 'mnt/vm1@one'));
  t.is(await firstByte(flat), 1);
  await succeeds(t, pcow('rollback', 'images/vm1@two'));
  t.is(await firstByte(flat), 2);
  await succeeds(t, pcow('delete', 'mnt/vm1@one'));
  t.is(await firstByte(flat), 2);
  t.notRegex(await succeeds(t, pcow('list', 'mnt/vm1')), /one/);
  t.is(await succeeds(t, pcow('rename', 'images/vm1@two', 'zwei')), 'vm1@two is now vm1@zwei\n');
  await fails(t, pcow('rename', 'mnt/vm1@two', 'x'), 4, /no snapshot named two/);
  t.regex(await succeeds(t, pcow('list', 'mnt/vm1')), /zwei/);
});

test.serial('one snapshot of several images of a mount', async (t) => {
  const { pcow } = await stage(t);
  await succeeds(t, pcow('snapshot', 'mnt/vm1@both', 'images/vm2@both'));
  t.regex(await succeeds(t, pcow('list', 'mnt/vm1')), /both/);
  t.regex(await succeeds(t, pcow('list', 'mnt/vm2')), /both/);
  await fails(t, pcow('snapshot', 'mnt/vm2@both', 'mnt/vm1@both'), 5, /both/);
  await succeeds(t, pcow('create', 'elsewhere', '1M'));
  await fails(t, pcow('snapshot', 'mnt/vm1@x', 'elsewhere@x'), 2, /not in the same mount/);
});

test.serial('clone and create --base freeze a mounted base through the mount', async (t) => {
  const { pcow, flat, scratch } = await stage(t);
  await write(flat, 1);
  await succeeds(t, pcow('clone', 'mnt/vm1', 'mnt/clone1'));
  await succeeds(t, pcow('clone', 'images/vm1', 'images/clone2'));
  await succeeds(
    t,
    pcow('create', 'images/larger', '2M', '--base', 'mnt/vm1', '--block-size', '64K'),
  );
  await succeeds(t, pcow('create', 'outside', '--base', 'images/vm1'));
  await write(flat, 2);
  t.is(await firstByte(path.join(scratch, 'mnt/clone1')), 1);
  t.is(await firstByte(path.join(scratch, 'mnt/clone2')), 1);
  t.is(await firstByte(path.join(scratch, 'mnt/larger')), 1);
  t.is((await stat(path.join(scratch, 'mnt/larger'))).size, 2 ** 21);
  t.regex(await succeeds(t, pcow('info', 'outside')), /^base +images\/vm1\.pcow@auto-/m);
  await succeeds(t, pcow('snapshot', 'mnt/vm1@two'));
  await succeeds(t, pcow('clone', 'mnt/vm1@two', 'mnt/clone3'));
  t.is(await firstByte(path.join(scratch, 'mnt/clone3')), 2);
});

test.serial('resize grows the flat file', async (t) => {
  const { pcow, flat } = await stage(t);
  await succeeds(t, pcow('resize', 'mnt/vm1', '3M'));
  t.is((await stat(flat)).size, 3 * 2 ** 20);
  await fails(t, pcow('resize', 'mnt/vm1', '2M'), 3, /loses the data after 2 MiB/, /--shrink/);
});

test.serial('with the format raw a flat file is read itself, never its image file', async (t) => {
  const { scratch, pcow, flat } = await stage(t);
  const wanted = Buffer.alloc(MiB, 'content');
  await writeFile(path.join(scratch, 'wanted'), wanted);
  await writeFile(flat, wanted, { flag: 'r+' });
  await succeeds(t, pcow('convert', '-f', 'raw', '-O', 'raw', 'mnt/vm1', 'got'));
  t.true((await readFile(path.join(scratch, 'got'))).equals(wanted));
  await succeeds(t, pcow('compare', '-f', 'raw', '-F', 'raw', 'mnt/vm1', 'wanted'));
  const refused = pcow('convert', '-f', 'raw', '-O', 'raw', 'images/vm1', 'got', '--force');
  await fails(t, refused, 3, /is a Pcow image: as a raw/, /omit the format/);
  await fails(t, pcow('measure', '-f', 'raw', 'images/vm1.pcow'), 3, /header and tables/);
});

test.serial('an image that is made in a mount, or beside it, appears in the mount', async (t) => {
  const { pcow, scratch } = await stage(t);
  await succeeds(t, pcow('create', 'mnt/new1', '1M'));
  await succeeds(t, pcow('create', 'images/new2', '1M'));
  t.is((await stat(path.join(scratch, 'mnt/new1'))).size, 2 ** 20);
  t.is((await stat(path.join(scratch, 'mnt/new2'))).size, 2 ** 20);
  await fails(t, pcow('create', 'mnt/new1', '1M'), 5, /new1\.pcow exists already/);
});

test.serial(
  'errors have the messages of the mount, and the exit codes of images at rest',
  async (t) => {
    const { pcow, flat } = await stage(t);
    await succeeds(t, pcow('snapshot', 'mnt/vm1@one'));
    await fails(t, pcow('snapshot', 'mnt/vm1@one'), 5, /vm1.*one/);
    await fails(t, pcow('rollback', 'mnt/vm1@none'), 4, /none/);
    await fails(t, pcow('delete', 'mnt/vm1@none'), 4, /none/);
    await fails(t, pcow('snapshot', 'mnt/vm1@a b'), 3, /white space/);
    await fails(t, pcow('clone', 'mnt/vm1', 'mnt/vm2'), 5, /vm2/);
    await succeeds(t, pcow('clone', 'mnt/vm1@one', 'mnt/vm3'));
    await fails(t, pcow('delete', 'mnt/vm1@one'), 6, /vm3\.pcow/);
    await fails(t, pcow('info', 'mnt/none'), 4, /there is no image/);
    await fails(t, pcow('info', 'mnt/.pcow/vm1/status'), 3, /not the flat file/);
    await fails(t, pcow('info', 'mnt/.pcow/vm1/at/one'), 3, /mnt\/vm1@one/);
    await fails(t, pcow('create', 'mnt/.pcow/new', '1M'), 3, /control files/);

    const opened = await open(flat, 'r+');
    const user = spawn('sleep', ['60'], { stdio: [opened.fd, 'ignore', 'ignore'] });
    t.teardown(() => user.kill());
    await once(user, 'spawn');
    await opened.close();
    await fails(t, pcow('rollback', 'mnt/vm1@one'), 6, new RegExp(`vm1.*${user.pid}`));
  },
);

test.serial('the error for an image that a mount does not show says why', async (t) => {
  const { pcow, scratch } = await stage(t);
  await succeeds(t, pcow('create', 'outside', '1M'));
  await succeeds(t, pcow('create', 'images/strange', '--base', 'outside'));
  await succeeds(t, pcow('create', 'images/lost', '--base', 'images/vm2'));
  await writeFile(path.join(scratch, 'images/text.pcow'), 'not an image');
  await rename(path.join(scratch, 'images/vm2.pcow'), path.join(scratch, 'vm2.pcow'));
  await fails(t, pcow('snapshot', 'images/strange@one'), 10, /outside/, /--allow-outside-base/);
  await fails(t, pcow('snapshot', 'images/lost@one'), 10, /vm2\.pcow/, /put the base back/);
  await fails(t, pcow('snapshot', 'images/text@one'), 3, /not a Pcow image/);
  await fails(t, pcow('info', 'mnt/strange'), 4, /there is no image "mnt\/strange"/);
  await rename(path.join(scratch, 'images/vm1.pcow'), path.join(scratch, 'images/status.pcow'));
  await fails(t, pcow('snapshot', 'images/status@one'), 4, /“status: snapshot one”/, /pcow umount/);
});

test.serial(
  'with --allow-outside-base a mount shows images on bases of other directories',
  async (t) => {
    const { pcow } = await stage(t, '--allow-outside-base');
    await succeeds(t, pcow('create', 'outside', '1M'));
    await succeeds(t, pcow('create', 'images/strange', '--base', 'outside'));
    await succeeds(t, pcow('snapshot', 'mnt/strange@one'));
  },
);

test.serial('a read-only mount changes nothing', async (t) => {
  const { pcow } = await stage(t, '--read-only');
  await fails(t, pcow('snapshot', 'mnt/vm1@one'), 7);
  t.regex(await succeeds(t, pcow('list', 'mnt/vm1')), /no snapshots/);
});

test.serial(
  'a mount in its own process: mount returns when it is ready, umount when it has ended',
  async (t) => {
    const scratch = await scratchDirectory(t);
    const pcow = pcowIn(scratch);
    await mkdir(path.join(scratch, 'images'));
    await mkdir(path.join(scratch, 'mnt'));
    await succeeds(t, pcow('create', 'images/vm1', '1M'));
    t.teardown(() => pcow('umount', 'mnt'));
    t.is(
      await succeeds(t, pcow('mount', 'images', 'mnt', '--log', 'log')),
      'images is mounted on mnt\n',
    );
    await write(path.join(scratch, 'mnt/vm1'), 7);
    await fails(t, pcow('mount', 'images', 'mnt'), 11, /already/);
    t.is(await succeeds(t, pcow('umount', 'mnt')), 'mnt is unmounted\n');
    t.regex(await succeeds(t, pcow('info', 'images/vm1')), /^state +closed$/m);
    t.regex(await readFile(path.join(scratch, 'log'), 'utf8'), /is mounted on/);
    await fails(t, pcow('umount', 'mnt'), 11, /mnt/);
    await fails(t, pcow('mount', 'images', 'nowhere'), 11, /nowhere does not exist/);
    await fails(t, pcow('mount', 'nowhere', 'mnt'), 11, /nowhere does not exist/);
    await fails(t, pcow('mount', 'images', 'mnt', '--foreground', '--log', 'log'), 2, /--log/);
  },
);

test.serial(
  'a mount in the foreground continues when the reader of its log ends, and ends on a signal',
  async (t) => {
    const { scratch, daemon, pcow } = await stage(t);
    daemon.stdout?.destroy();
    daemon.stderr?.destroy();
    await succeeds(t, pcow('snapshot', 'mnt/vm1@one'));
    await fails(t, pcow('snapshot', 'mnt/vm1@one'), 5, /one/);
    daemon.kill('SIGTERM');
    const [exit] = (await once(daemon, 'exit', { signal: AbortSignal.timeout(600_000) })) as [
      number | null,
    ];
    t.is(exit, 0);
    t.regex(await succeeds(t, pcow('info', path.join(scratch, 'images/vm1'))), /^state +closed$/m);
  },
);

test.serial('a mount that died is reported as dead', async (t) => {
  const scratch = await scratchDirectory(t);
  await mkdir(path.join(scratch, 'images'));
  await mkdir(path.join(scratch, 'mnt'));
  const pcow = pcowIn(scratch);
  await succeeds(t, pcow('create', 'images/vm1', '1M'));
  const daemon = await mounted(t, path.join(scratch, 'images'), path.join(scratch, 'mnt'));
  daemon.kill('SIGKILL');
  await once(daemon, 'close');
  await fails(t, pcow('snapshot', 'images/vm1@one'), 11, /died/, /pcow umount/);
  await fails(t, pcow('info', 'mnt/vm1'), 11, /died/, /pcow umount/);
  await succeeds(t, pcow('umount', 'mnt'));
  await succeeds(t, pcow('snapshot', 'images/vm1@one'));
});

interface Struck {
  code: number | null;
  lines: { operation: string; done: number; total: number }[];
}

/**
 * Runs a command that reports progress. `strike` is called with its process at the first line of
 * progress.
 */
async function told(
  cwd: string,
  words: string[],
  strike: (child: ChildProcess) => void,
): Promise<Struck> {
  const child = spawn(process.execPath, [pcowProgram, ...words, '--progress', 'json'], {
    cwd,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  child.stderr.once('data', () => strike(child));
  const [code] = (await once(child, 'close')) as [number | null];
  const lines = said.split('\n').filter((line) => line.startsWith('{'));
  return { code, lines: lines.map((line) => JSON.parse(line) as Struck['lines'][number]) };
}

test.serial(
  'long changes through a mount report progress, and are stopped by Ctrl-C',
  async (t) => {
    const { scratch, pcow } = await stage(t);
    const at = (name: string) => path.join(scratch, `images/${name}.pcow`);
    await Image.create(at('base'), { size: 512 * MiB });
    await working(at('base'), async (image) => {
      for (let offset = 0; offset < 512 * MiB; offset += MiB)
        await image.write(Buffer.alloc(MiB, 1), offset);
      await image.snapshot('full');
    });
    const status = async () =>
      JSON.parse(await readFile(path.join(scratch, 'mnt/.pcow/vm3/status'), 'utf8')) as Status;
    for (let round = 0; ; round += 1) {
      await succeeds(t, pcow('clone', 'mnt/base@full', 'mnt/vm3'));
      const { code } = await told(scratch, ['flatten', 'mnt/vm3'], (child) => child.kill('SIGINT'));
      if (code === 130) break;
      t.true(code === 0 && round < 20, 'it was always done before it was interrupted');
      await succeeds(t, pcow('rm', 'mnt/vm3'));
    }
    t.like(await status(), {
      base: { snapshot: 'full' },
      lastError: { command: 'flatten', code: 'PCOW_CANCELLED' },
    });
    const { code, lines } = await told(scratch, ['flatten', 'mnt/vm3'], () => undefined);
    t.is(code, 0);
    t.true(lines.every(({ operation }) => operation === 'flatten vm3'));
    const last = lines.at(-1);
    t.is(last?.done, last?.total);
    t.like(await status(), { base: null, working: null });
    const cancel = path.join(scratch, 'mnt/.pcow/vm3/cancel');
    t.is(await readFile(cancel, 'utf8'), 'write COMMAND to stop it; in progress: (none)\n');
    await t.throwsAsync(writeFile(cancel, 'flatten'), { code: 'ENOENT' });
    t.regex((await status()).lastError?.message ?? '', /vm3 has no "flatten" in progress/);
  },
);

test.serial(
  'receive works beside a mount that only shows the image, but not if the mount has it open for writing',
  async (t) => {
    const { scratch, pcow, flat } = await stage(t);
    await succeeds(t, pcow('create', 'source', '1M'));
    const put = (byte: number, name: string) =>
      working(path.join(scratch, 'source.pcow'), async (image) => {
        await image.write(Buffer.alloc(4096, byte), 0);
        await image.snapshot(name);
      });
    const shell = await shellIn(t, scratch);
    await put(1, 'one');
    await succeeds(t, shell('pcow send source@one | pcow receive mnt/vm1'));
    t.is(await firstByte(flat), 1);
    await put(2, 'two');
    await succeeds(t, shell('pcow send source@two --from one | pcow receive images/vm1'));
    t.is(await firstByte(flat), 2);
    t.is(await firstByte(path.join(scratch, 'mnt/.pcow/vm1/at/one')), 1);
    await succeeds(t, pcow('snapshot', 'mnt/vm1@here'));
    await put(3, 'three');
    await fails(
      t,
      shell('pcow send source@three --from two | pcow receive mnt/vm1'),
      6,
      /in use in the mount on/,
      /pcow umount/,
    );
    t.is(await firstByte(flat), 2);
  },
);
