/** pcow convert: round trips of random sparse data, and images of the original Pcow. */
import { execFile } from 'node:child_process';
import { copyFile, open, readFile, readdir, stat, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { makeOriginal, type OriginalBlock } from '../helpers/original.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, shellIn, succeeds } from './outcome.js';

const run = promisify(execFile);
const MiB = 2 ** 20;
const BLOCK = 65536;

/** A sparse raw file with random data and written zeros. */
async function randomRaw(random: Random, file: string, size: number): Promise<void> {
  const handle = await open(file, 'w');
  await handle.truncate(size);
  for (let i = 0; i < 40; i += 1) {
    const length = 1 + random.below(200_000);
    const bytes = random.chance(0.2) ? Buffer.alloc(length) : random.fill(Buffer.alloc(length));
    const offset = random.below(size - length);
    await handle.write(bytes, 0, length, offset);
  }
  await handle.close();
}

async function diskUse(file: string): Promise<number> {
  return (await stat(file)).blocks * 512;
}

async function contentOf(file: string, snapshot?: string): Promise<Buffer> {
  const image = await Image.open(file);
  const bytes = Buffer.alloc(image.info().size);
  await image.read(bytes, 0, snapshot);
  await image.close();
  return bytes;
}

test('raw → pcow → qcow2 → pcow → raw, byte for byte and sparse', async (t) => {
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}`);
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const at = (name: string) => path.join(directory, name);
  await randomRaw(random, at('start.raw'), 64 * MiB);
  await succeeds(t, pcow('convert', 'start.raw', 'one'));
  await succeeds(t, pcow('convert', 'one', 'two.qcow2'));
  await run('qemu-img', ['check', at('two.qcow2')]);
  await succeeds(t, pcow('convert', 'two.qcow2', 'three', '--block-size', '4K'));
  await succeeds(t, pcow('convert', 'three', 'end.raw'));
  t.true((await readFile(at('start.raw'))).equals(await readFile(at('end.raw'))));
  t.true((await diskUse(at('end.raw'))) <= (await diskUse(at('start.raw'))));
  t.true((await diskUse(at('one.pcow'))) < 48 * MiB);
  t.deepEqual((await readdir(directory)).sort(), [
    'end.raw',
    'one.pcow',
    'start.raw',
    'three.pcow',
    'two.qcow2',
  ]);
});

test('vmdk, vdi and vhdx can be read', async (t) => {
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}`);
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await randomRaw(random, path.join(directory, 'start.raw'), 16 * MiB);
  const expected = await readFile(path.join(directory, 'start.raw'));
  for (const format of ['vmdk', 'vdi', 'vhdx']) {
    await run('qemu-img', ['convert', '-f', 'raw', '-O', format, 'start.raw', `in.${format}`], {
      cwd: directory,
    });
    await succeeds(t, pcow('convert', `in.${format}`, format));
    t.true((await contentOf(path.join(directory, `${format}.pcow`))).equals(expected), format);
  }
});

test('a snapshot, and -B: only the differences from the base are stored', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const raw = Buffer.alloc(4 * MiB, 7);
  await writeFile(path.join(directory, 'a.raw'), raw);
  await succeeds(t, pcow('convert', 'a.raw', 'base'));
  await succeeds(t, pcow('snapshot', 'base@s'));
  raw.fill(8, BLOCK, 2 * BLOCK);
  raw.fill(0, 3 * BLOCK, 4 * BLOCK);
  await writeFile(path.join(directory, 'b.raw'), raw);
  await succeeds(t, pcow('convert', 'b.raw', 'vm', '-B', 'base@s'));
  t.true((await contentOf(path.join(directory, 'vm.pcow'))).equals(raw));
  t.true((await diskUse(path.join(directory, 'vm.pcow'))) < 7 * BLOCK);
  await succeeds(t, pcow('convert', 'base@s', 'back.raw'));
  t.true(
    (await readFile(path.join(directory, 'back.raw'))).equals(
      await readFile(path.join(directory, 'a.raw')),
    ),
  );
});

/** Random blocks, some of them copied in part, applied to `disk`. */
function randomSegment(random: Random, disk: Buffer, below: Buffer): OriginalBlock[] {
  const numbers = new Set(Array.from({ length: 6 }, () => random.below(disk.length / BLOCK)));
  return [...numbers].map((block) => {
    const bytes = Buffer.alloc(BLOCK);
    random.fill(bytes);
    const bitmap = random.chance(0.5) ? 0 : 1 + random.below(65535);
    for (let unit = 0; unit < 16; unit += 1) {
      const from = block * BLOCK + unit * 4096;
      const source =
        bitmap === 0 || (bitmap >> unit) & 1 ? bytes.subarray(unit * 4096) : below.subarray(from);
      source.copy(disk, from, 0, 4096);
    }
    return { block, bitmap, bytes };
  });
}

test('an image of the original Pcow, with snapshots and a base', async (t) => {
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}`);
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const blocks = 32;
  const disk = Buffer.alloc(blocks * BLOCK);
  const states: Buffer[] = [];
  const write = () => {
    const below = Buffer.from(disk);
    const segment = randomSegment(random, disk, below);
    states.push(Buffer.from(disk));
    return segment;
  };
  await makeOriginal(path.join(directory, 'base.img'), { blocks, segments: [write(), write()] });
  states.length = 0;
  await makeOriginal(path.join(directory, 'old.img'), {
    blocks,
    base: 'base.img',
    segments: [write(), write(), write()],
  });
  await succeeds(t, pcow('convert', 'old.img', 'vm'));
  const file = path.join(directory, 'vm.pcow');
  t.true((await contentOf(file, 'snapshot-1')).equals(states[0] ?? Buffer.alloc(0)));
  t.true((await contentOf(file, 'snapshot-2')).equals(states[1] ?? Buffer.alloc(0)));
  t.true((await contentOf(file)).equals(states[2] ?? Buffer.alloc(0)));
});

test('in large blocks of the original each bit of the bitmap stands for 4 KiB, and every 64th unit shares a bit', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  for (const kib of [64, 128, 256, 1024, 2048]) {
    const blockSize = kib * 1024;
    const below = Buffer.alloc(blockSize, 0x11);
    await makeOriginal(path.join(directory, 'base.img'), {
      blockSize,
      blocks: 8,
      segments: [[{ block: 3, bytes: below }]],
    });
    for (const unit of [0, 10, 74].filter((it) => it < blockSize / 4096)) {
      // As the original leaves it when it has copied one unit.
      const bytes = Buffer.alloc(blockSize);
      bytes.fill(0x22, unit * 4096, (unit + 1) * 4096);
      await makeOriginal(path.join(directory, 'top.img'), {
        blockSize,
        blocks: 8,
        base: 'base.img',
        segments: [[{ block: 3, bitmap: 1 << (unit % 64), bytes }]],
      });
      await succeeds(t, pcow('convert', 'top.img', 'vm', '--force'));
      const wanted = Buffer.from(below);
      wanted.fill(0x22, unit * 4096, (unit + 1) * 4096);
      const content = await contentOf(path.join(directory, 'vm.pcow'));
      t.true(
        content.subarray(3 * blockSize, 4 * blockSize).equals(wanted),
        `${kib} KiB, unit ${unit}`,
      );
    }
  }
});

test('damaged images of the original Pcow are refused, and no file is left', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const at = (name: string) => path.join(directory, name);
  const bytes = Buffer.alloc(BLOCK, 1);
  const segments = [[{ block: 1, bytes }], [{ block: 2, bytes }]];
  await makeOriginal(at('good.img'), { blocks: 4, segments });
  const damage = async (name: string, offset: number, value: number) => {
    await copyFile(at('good.img'), at(name));
    const handle = await open(at(name), 'r+');
    const word = Buffer.alloc(4);
    word.writeInt32LE(value);
    await handle.write(word, 0, 4, offset);
    await handle.close();
  };
  await copyFile(at('good.img'), at('cut.img'));
  await truncate(at('cut.img'), 2.5 * BLOCK);
  await fails(
    t,
    pcow('convert', 'cut.img', 'vm'),
    9,
    /cut\.img.*cut short: block 1 should be at 131072/,
  );
  await damage('count.img', BLOCK, -1);
  await fails(t, pcow('convert', 'count.img', 'vm'), 9, /count\.img.*has -1 entries/);
  await damage('block.img', BLOCK + 64, 99);
  await fails(t, pcow('convert', 'block.img', 'vm'), 9, /block\.img.*names block 99 of 4/);
  await damage('size.img', 0, 5000);
  await fails(t, pcow('convert', 'size.img', 'vm'), 9, /size\.img.*a block size of 5000 bytes/);
  await makeOriginal(at('lost.img'), { blocks: 4, base: 'none.img', segments });
  await fails(t, pcow('convert', 'lost.img', 'vm'), 10, /lost\.img stands on "none\.img"/);
  await makeOriginal(at('loop.img'), { blocks: 4, base: 'loop.img', segments });
  await fails(
    t,
    pcow('convert', 'loop.img', 'vm'),
    10,
    /loop\.img stands on .*loop\.img, which stands on \S*loop\.img/,
  );
  t.false((await readdir(directory)).some((name) => name.includes('vm')));
});

test('mistakes', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('create', 'vm', '1M'));
  await fails(t, pcow('convert', 'vm', 'copy'), 2, /does not show the format/, /-O pcow/);
  await fails(
    t,
    pcow('convert', 'vm', 'copy.raw', '-c'),
    2,
    /-c is for targets of the format qcow2/,
  );
  await writeFile(path.join(directory, 'there.raw'), 'x');
  await fails(t, pcow('convert', 'vm', 'there.raw'), 5, /there\.raw exists already/, /--force/);
  await fails(t, pcow('convert', 'none', 'x.raw'), 4, /no image "none"/);
  await fails(t, pcow('convert', 'vm', 'nowhere/x.raw'), 4, /no directory "nowhere"/);
  t.is(await readFile(path.join(directory, 'there.raw'), 'utf8'), 'x');
});

test('an image that is in use, that others stand on, or that is the source is not replaced', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const at = (name: string) => path.join(directory, name);
  for (const name of ['vm', 'other']) await succeeds(t, pcow('create', name, '1M'));
  await succeeds(t, pcow('snapshot', 'other@s'));
  const ways = [
    ['create', 'vm', '1M', '--force'],
    ['clone', 'other@s', 'vm', '--force'],
    ['convert', '-O', 'pcow', 'other@s', 'vm', '--force'],
    ['convert', '-O', 'raw', 'other@s', 'vm.pcow', '--force'],
    ['convert', '-O', 'qcow2', 'other@s', 'vm.pcow', '--force'],
    ['convert', '-O', 'pcow', '-B', 'other@s', 'other', 'vm', '--force'],
    ['export', 'other', 'vm.pcow', '--force'],
  ];
  const guest = await Image.open(at('vm.pcow'), { write: true });
  await guest.write(Buffer.from('guest'), 0);
  for (const words of ways)
    await fails(t, pcow(...words), 6, /vm\.pcow is open for writing by .+; it is not replaced/);
  await guest.snapshot('s');
  await guest.close();
  await succeeds(t, pcow('clone', 'vm@s', 'child'));
  for (const words of ways)
    await fails(t, pcow(...words), 6, /vm\.pcow can't be replaced: child\.pcow stands on it/);
  for (const words of [
    ['convert', '-O', 'pcow', 'vm', 'vm', '--force'],
    ['convert', '-O', 'raw', 'child', 'vm.pcow', '--force'],
    ['convert', '-O', 'pcow', '-B', 'other@s', 'vm', 'other', '--force'],
    ['export', 'child', 'vm.pcow', '--force'],
  ]) {
    await fails(
      t,
      pcow(...words),
      3,
      /can't be replaced by its own content/,
      /choose another name/,
    );
  }
  await succeeds(t, pcow('rm', 'child'));
  await succeeds(t, pcow('convert', '-O', 'pcow', 'other', 'vm', '--force'));
});

/**
 * disk.qcow2 with two snapshots (one with a name that is not valid in Pcow), and its present
 * content.
 */
async function withInternalSnapshots(directory: string): Promise<Buffer[]> {
  const states: Buffer[] = [];
  const disk = Buffer.alloc(4 * MiB);
  const write = async (command: string) => {
    await run('qemu-io', ['-f', 'qcow2', '-c', command, 'disk.qcow2'], { cwd: directory });
  };
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', 'disk.qcow2', '4M'], { cwd: directory });
  for (const [at, name] of ['before upgrade', 'before upgrade', null].entries()) {
    await write(`write -P ${at + 1} ${at * BLOCK} ${2 * BLOCK}`);
    disk.fill(at + 1, at * BLOCK, (at + 2) * BLOCK);
    states.push(Buffer.from(disk));
    if (name !== null)
      await run('qemu-img', ['snapshot', '-c', name, 'disk.qcow2'], { cwd: directory });
  }
  return states;
}

test('the snapshots inside a qcow2 file are converted, or only the named one', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const at = (name: string) => path.join(directory, name);
  const [first, second, now] = (await withInternalSnapshots(directory)) as [Buffer, Buffer, Buffer];
  t.regex(
    await succeeds(t, pcow('convert', 'disk.qcow2', 'vm')),
    /with the snapshots before-upgrade, before-upgrade-2$/m,
  );
  t.true((await contentOf(at('vm.pcow'), 'before-upgrade')).equals(first));
  t.true((await contentOf(at('vm.pcow'), 'before-upgrade-2')).equals(second));
  t.true((await contentOf(at('vm.pcow'))).equals(now));
  t.true((await diskUse(at('vm.pcow'))) < 12 * BLOCK, 'each is stored as what differs');

  await succeeds(t, pcow('convert', '-l', 'before upgrade', 'disk.qcow2', 'one.raw'));
  t.true((await readFile(at('one.raw'))).equals(first));
  await succeeds(t, pcow('convert', '-l', 'snapshot.id=2', 'disk.qcow2', 'two'));
  t.true((await contentOf(at('two.pcow'))).equals(second));
  await succeeds(t, pcow('compare', 'disk.qcow2@2', 'two'));
  await fails(
    t,
    pcow('convert', '-l', 'none', 'disk.qcow2', 'x'),
    4,
    /no snapshot "none"/,
    /it has "before upgrade"/,
  );
  await fails(t, pcow('convert', '-l', 'none', 'one.raw', 'x'), 3, /not a Pcow image/);
});

test('options of qemu-img: -p -q -t -T -W -m, -n, and - for standard output', async (t) => {
  const directory = await scratchDirectory(t);
  const pcow = pcowIn(directory);
  const at = (name: string) => path.join(directory, name);
  const bytes = Buffer.alloc(4 * MiB);
  bytes.fill(5, BLOCK, 2 * BLOCK);
  await writeFile(at('a.raw'), bytes);
  t.is(
    await succeeds(
      t,
      pcow('convert', '-q', '-t', 'none', '-T', 'none', '-W', '-m', '8', 'a.raw', 'vm'),
    ),
    '',
  );
  await fails(t, pcow('convert', '-m', '99', 'a.raw', 'x'), 2, /number from 1 to 16/);
  await succeeds(t, pcow('convert', '-p', 'a.raw', 'shown'));

  // Zeros overwrite the existing data, and data behind the end stays.
  const target = Buffer.alloc(5 * MiB, 9);
  await writeFile(at('there.raw'), target);
  await succeeds(t, pcow('convert', '-n', '-O', 'raw', 'vm', 'there.raw'));
  bytes.copy(target);
  t.true((await readFile(at('there.raw'))).equals(target));
  await succeeds(t, pcow('create', 'big', '5M'));
  await succeeds(t, pcow('convert', '-n', 'there.raw', '-O', 'pcow', 'big'));
  await succeeds(t, pcow('snapshot', 'big@s'));
  await succeeds(t, pcow('convert', '-n', '-O', 'pcow', 'a.raw', 'big'));
  t.true((await contentOf(at('big.pcow'))).equals(target));
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', at('there.qcow2'), '4M']);
  await succeeds(t, pcow('convert', '-n', 'vm', 'there.qcow2'));
  await succeeds(t, pcow('compare', 'vm', 'there.qcow2'));

  await succeeds(t, pcow('create', 'small', '1M'));
  await fails(
    t,
    pcow('convert', '-n', '-O', 'pcow', 'a.raw', 'small'),
    3,
    /small has 1 MiB, and "a\.raw" 4 MiB/,
    /resize small 4M/,
  );
  await fails(
    t,
    pcow('convert', '-n', '-O', 'raw', 'a.raw', 'vm.pcow'),
    3,
    /raw bytes would destroy it/,
  );
  await fails(t, pcow('convert', '-n', '-O', 'raw', 'a.raw', 'none.raw'), 4, /no "none\.raw"/);
  await fails(t, pcow('convert', '-n', '-O', 'pcow', 'vm', 'vm'), 3, /is read from/);

  const shell = await shellIn(t, directory);
  t.like(await shell('pcow convert vm - | cmp - a.raw'), { exit: 0, stdout: '', stderr: '' });
  t.like(await shell('pcow convert vm - > out.raw && cmp out.raw a.raw'), {
    exit: 0,
    stdout: '',
    stderr: '',
  });
  await fails(
    t,
    pcow('convert', '-O', 'qcow2', 'vm', '-'),
    2,
    /cannot go to standard output/,
    /-O raw/,
  );
});

test('errors never name the draft, but the file that should have been made', async (t) => {
  const directory = await scratchDirectory(t);
  await writeFile(path.join(directory, 'a.raw'), Buffer.alloc(MiB, 1));
  const pcow = pcowIn(directory);
  await succeeds(t, pcow('convert', 'a.raw', 'vm'));
  const outcome = await pcow('convert', '-o', 'nonsense=1', 'vm', 'out.qcow2');
  await fails(t, Promise.resolve(outcome), 3, /out\.qcow2/, /nonsense/);
  t.notRegex(outcome.stderr, /draft|\/proc\//);
});
