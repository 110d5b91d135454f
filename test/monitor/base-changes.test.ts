/**
 * "The base can still be used without ever changing the images that stand on it": each change of a
 * base's structure under each kind of long reader of these images. The readers are a guest (a
 * process under the monitor), an open file of the mount, and send, export and convert, each stopped
 * in the middle while the base changes.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { open, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { pcowIn } from '../cli/outcome.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { type Conversation, program } from '../helpers/program.js';

const run = promisify(execFile);
const PCOW = fileURLToPath(new URL('../../cli/pcow.cjs', import.meta.url));
const BLOCK = 65536;
const SIZE = 16 * MiB;
const BLOCKS = SIZE / BLOCK;

interface Change {
  name: string;
  /**
   * An export contains all of the base: it fails with a message if a part of that is gone, or
   * stands on something else.
   */
  endsExport?: true;
  happen(mount: TestMount, pcow: (...words: string[]) => Promise<void>): Promise<void>;
}

const base = (mount: TestMount): string => mount.file('base');

const CHANGES: Change[] = [
  { name: 'a snapshot', happen: (mount, pcow) => pcow('snapshot', `${base(mount)}@new`) },
  {
    name: 'an older snapshot deleted',
    endsExport: true,
    happen: (mount, pcow) => pcow('delete', `${base(mount)}@old`),
  },
  {
    name: 'a rollback, and new writes',
    async happen(mount, pcow) {
      await pcow('rollback', `${base(mount)}@old`);
      await fill(base(mount), 0, 40, 0xee);
    },
  },
  {
    name: 'growing and shrinking',
    async happen(mount, pcow) {
      await pcow('resize', base(mount), '32M');
      await pcow('resize', '--shrink', base(mount), '16M');
    },
  },
  {
    name: 'no base of its own any more',
    endsExport: true,
    happen: (mount, pcow) => pcow('flatten', base(mount)),
  },
  {
    name: 'another base of its own, and the former one removed',
    endsExport: true,
    async happen(mount, pcow) {
      await pcow('rebase', '-b', `${mount.file('other')}@o`, base(mount));
      await pcow('rm', mount.file('ground'));
    },
  },
  {
    name: 'a commit into it',
    async happen(mount, pcow) {
      await pcow('clone', `${base(mount)}@one`, mount.file('cousin'));
      await fill(mount.file('cousin'), 2, 3, 0x77);
      await pcow('commit', mount.file('cousin'));
    },
  },
  { name: 'compacting', happen: (mount, pcow) => pcow('compact', base(mount)) },
  { name: 'checksums', happen: (mount, pcow) => pcow('scrub', '--add', base(mount)) },
  {
    name: 'the end of its own guest',
    async happen(mount) {
      const tool = await monitored(mount.t, await program('map-tool', mount.scratch), [
        base(mount),
      ]);
      mount.t.is(await tool.ask(`write ${3 * BLOCK} ${BLOCK} 99`), 'ok');
      await tool.end();
      await attachedTo(mount, 'base', null);
    },
  },
  {
    name: 'another name, which is refused while a guest stands on it',
    async happen(mount, pcow) {
      await mount.t.throwsAsync(pcow('rename', base(mount), mount.file('renamed')), {
        message: /process \d+ \(map-tool\) uses vm1/,
      });
    },
  },
  {
    name: 'another file put in its place, as tar and mv do it, which is refused',
    async happen(mount, pcow) {
      const stranger = path.join(mount.scratch, 'stranger');
      await writeFile(stranger, Buffer.alloc(BLOCK, 0x99));
      await mount.t.throwsAsync(run('mv', ['-f', stranger, base(mount)]));
      await mount.t.throwsAsync(pcow('rm', base(mount)));
      mount.t.deepEqual((await readFile(base(mount))).subarray(0, BLOCK), Buffer.alloc(BLOCK, 3));
    },
  },
];

async function fill(file: string, first: number, end: number, value: number): Promise<void> {
  const handle = await open(file, 'r+');
  await handle.write(
    Buffer.alloc((end - first) * BLOCK, value),
    0,
    (end - first) * BLOCK,
    first * BLOCK,
  );
  await handle.close();
}

/**
 * ground@g ← base@old ← base@one ← vm1 (used by a guest), and vm2@kept; other@o is another ground.
 * Returns the contents of vm1 and vm2.
 */
async function makeImages(mount: TestMount): Promise<Buffer> {
  const make = async (
    name: string,
    on: [string, string] | null,
    work: (image: Image) => Promise<void>,
  ): Promise<void> => {
    const below = on && { path: mount.image(on[0]), snapshot: on[1] };
    await Image.create(mount.image(name), below ? { base: below } : { size: SIZE });
    const image = await Image.open(mount.image(name), { write: true });
    await work(image);
    await image.close();
  };
  const put = (image: Image, first: number, end: number, value: number): Promise<unknown> =>
    image.write(Buffer.alloc((end - first) * BLOCK, value), first * BLOCK);
  await make('ground', null, async (image) => {
    await put(image, 0, 200, 1);
    await image.snapshot('g');
  });
  await make('other', null, async (image) => {
    await put(image, 100, 250, 2);
    await image.snapshot('o');
  });
  await make('base', ['ground', 'g'], async (image) => {
    await put(image, 0, 30, 3);
    await image.snapshot('old');
    await put(image, 20, 60, 4);
    await image.snapshot('one');
  });
  for (const name of ['vm1', 'vm2']) {
    await make(name, ['base', 'one'], async (image) => {
      await put(image, 240, 250, 5);
      if (name === 'vm2') await image.snapshot('kept');
    });
  }
  const model = Buffer.alloc(SIZE);
  for (const [first, end, value] of [
    [0, 200, 1],
    [0, 20, 3],
    [20, 60, 4],
    [240, 250, 5],
  ] as const) {
    model.fill(value, first * BLOCK, end * BLOCK);
  }
  return model;
}

/** Commands that must succeed, one after another. */
function commandsIn(directory: string): (...words: string[]) => Promise<void> {
  const pcow = pcowIn(directory);
  return async (...words) => {
    const { exit, stderr } = await pcow(...words);
    if (exit !== 0) throw new Error(`pcow ${words.join(' ')}: ${stderr}`);
  };
}

/**
 * A command that is half done: its output is not read, or it is stopped after it has made a file.
 */
class HalfDone {
  private constructor(readonly child: ChildProcess) {}

  static piped(t: ExecutionContext<unknown>, ...words: string[]): HalfDone {
    const child = spawn(process.execPath, [PCOW, ...words], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => child.kill('SIGKILL'));
    return new HalfDone(child);
  }

  static async stopped(
    t: ExecutionContext<unknown>,
    directory: string,
    ...words: string[]
  ): Promise<HalfDone> {
    const before = new Set(await readdir(directory));
    const child = spawn(process.execPath, [PCOW, ...words], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    t.teardown(() => child.kill('SIGKILL'));
    const hasBegun = async (): Promise<boolean> => {
      for (const name of await readdir(directory)) {
        const made = before.has(name)
          ? null
          : await stat(path.join(directory, name)).catch(() => null);
        if (made !== null && made.blocks > 0) return true;
      }
      return false;
    };
    while (child.exitCode === null && !(await hasBegun())) await sleep(2);
    child.kill('SIGSTOP');
    return new HalfDone(child);
  }

  async begun(): Promise<void> {
    const { stdout } = this.child;
    if (stdout) await once(stdout, 'readable');
  }

  /** Its exit code. */
  async goOn(output?: string): Promise<number | null> {
    const ended =
      this.child.exitCode === null
        ? once(this.child, 'close')
        : Promise.resolve([this.child.exitCode]);
    if (output !== undefined) this.child.stdout?.pipe(createWriteStream(output));
    this.child.kill('SIGCONT');
    return ((await ended) as [number | null])[0];
  }
}

async function guestSees(
  t: ExecutionContext<unknown>,
  guest: Conversation,
  model: Buffer,
): Promise<void> {
  for (const block of [1, 5, 25, 45, 61, 130, 199, 201, 245, 255]) {
    t.is(
      await guest.ask(`read ${block * BLOCK + 5000}`),
      String(model[block * BLOCK + 5000]),
      `block ${block}`,
    );
  }
}

for (const change of CHANGES) {
  test.serial(`while images on it are read, a base has ${change.name}`, async (t) => {
    const mount = await imagesFor(t, {});
    const model = await makeImages(mount);
    await mount.mount();
    const pcow = commandsIn(mount.scratch);
    const guest = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await guest.ask(`read ${BLOCK}`), '3');
    const plain = await open(mount.file('vm2'), 'r');
    t.teardown(() => plain.close());
    const outputs = path.join(mount.scratch, 'made');
    await run('mkdir', [outputs]);
    const made = (name: string): string => path.join(outputs, name);
    const sending = HalfDone.piped(t, 'send', `${mount.image('vm2')}@kept`);
    const exporting = HalfDone.piped(t, 'export', mount.image('vm2'), '-');
    await Promise.all([sending.begun(), exporting.begun()]);
    const converting = await HalfDone.stopped(
      t,
      outputs,
      'convert',
      '-O',
      'raw',
      `${mount.image('vm2')}@kept`,
      made('raw'),
    );

    await change.happen(mount, pcow);

    await guestSees(t, guest, model);
    const expected = Buffer.from(model); // of readers that do not read what this guest writes
    for (let block = 0; block < BLOCKS; block += 7) {
      t.is(await guest.ask(`write ${block * BLOCK + 4096} 100 88`), 'ok');
      model.fill(88, block * BLOCK + 4096, block * BLOCK + 4196);
    }
    t.is(await guest.ask(`dump ${made('guest')}`), 'ok');
    t.true((await readFile(made('guest'))).equals(model), 'the guest');

    const flat = Buffer.alloc(SIZE);
    await plain.read(flat, 0, SIZE, 0);
    t.true(flat.equals(expected), 'the mount');
    t.is(await sending.goOn(made('stream')), 0, 'send');
    t.is(await converting.goOn(), 0, 'convert');
    const exported = await exporting.goOn(made('archive'));
    t.true(exported === 0 || change.endsExport === true, `export: ${exported}`);
    t.true((await readFile(made('raw'))).equals(expected), 'convert');
    await run('sh', ['-c', `"${process.execPath}" "${PCOW}" receive received < stream`], {
      cwd: outputs,
    });
    if (exported === 0) await commandsIn(outputs)('import', 'archive', 'imported');
    for (const name of exported === 0 ? ['received', 'imported'] : ['received']) {
      const image = await Image.open(made(`${name}.pcow`));
      const bytes = Buffer.alloc(SIZE);
      await image.read(bytes, 0);
      await image.close();
      t.true(bytes.equals(expected), name);
    }
  });
}

test.serial(
  'a base that gets another base while there is no mount: the guest waits for the next one',
  async (t) => {
    const mount = await imagesFor(t, {});
    const model = await makeImages(mount);
    await mount.mount();
    const guest = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
    t.is(await guest.ask(`read ${BLOCK}`), '3');
    await mount.kill();
    const base = await Image.open(mount.image('base'), { write: true });
    await base.rebase({ path: mount.image('other'), snapshot: 'o' });
    await base.close();
    const seen = guest.ask(`read ${130 * BLOCK}`);
    await mount.mount();
    t.is(await seen, '1');
    await guestSees(t, guest, model);
    // The files that it has got since work like the first ones.
    await commandsIn(mount.scratch)('delete', `${mount.file('base')}@old`);
    t.is(await guest.ask(`write ${BLOCK} 100 88`), 'ok');
    model.fill(88, BLOCK, BLOCK + 100);
    const made = path.join(mount.scratch, 'guest');
    t.is(await guest.ask(`dump ${made}`), 'ok');
    t.true((await readFile(made)).equals(model));
  },
);
