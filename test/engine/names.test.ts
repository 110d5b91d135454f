/**
 * The valid names of snapshots: TypeScript and the engine have the same rule, that of
 * docs/format.md.
 */
import path from 'node:path';
import test from 'ava';
import { Image, PcowError } from '../../src/engine/index.js';
import { checkSnapshotName } from '../../src/engine/validate.js';
import { scratchDirectory } from '../helpers/scratch.js';

/**
 * The characters around every possible rule: ASCII, C1, all kinds of spaces, surrogates, and the
 * limits of UTF-8 lengths and of Unicode.
 */
function* characters(): Generator<string> {
  const ranges = [
    [0, 0x180],
    [0x7fe, 0x802],
    [0x1680, 0x1681],
    [0x180e, 0x180f],
    [0x1ff8, 0x2070],
    [0x2fff, 0x3002],
    [0xd7fe, 0xe002],
    [0xfefe, 0xff02],
    [0xfff0, 0x10002],
    [0x10fffe, 0x110000],
  ] as const;
  for (const [first, end] of ranges) {
    // Surrogates: the first and the last only.
    for (let code = first; code < end; code++) {
      if (code < 0xd802 || code > 0xdffd || (code > 0xdbfd && code < 0xdc02))
        yield String.fromCodePoint(code);
    }
  }
}

function* names(): Generator<string> {
  for (const character of characters()) {
    yield character;
    if (character < '\u0100') yield `a${character}b`;
  }
  yield* [
    '',
    '.',
    '..',
    '...',
    '. ',
    'a\u00a0b',
    'a\u0085b',
    '\ud800\udc00',
    '\udc00\ud800',
    '--force',
    'é',
    'e\u0301',
  ];
  for (const character of ['x', 'é', '雪', '😀']) {
    for (const bytes of [1, 251, 252, 253, 254, 255, 256, 257, 300]) {
      const count = Math.floor(bytes / Buffer.byteLength(character));
      yield character.repeat(count) + 'y'.repeat(bytes - count * Buffer.byteLength(character));
    }
  }
}

function accepts(work: () => unknown): boolean {
  try {
    work();
    return true;
  } catch (error) {
    if (error instanceof PcowError && error.code === 'PCOW_INVALID') return false;
    throw error;
  }
}

test('TypeScript refuses exactly the names that the engine refuses', async (t) => {
  const file = path.join(await scratchDirectory(t), 'disk.pcow');
  await Image.create(file, { size: 65536 });
  const image = await Image.open(file, { write: true });
  t.teardown(() => image.close());
  let taken = 0;
  for (const name of new Set(names())) {
    // Lone surrogates have no UTF-8, so the engine never sees them.
    const reaches = Buffer.from(name).toString() === name && !name.includes('\0');
    const engine = reaches && (await engineAccepts(image, name));
    t.is(
      accepts(() => {
        checkSnapshotName(name);
      }),
      engine,
      JSON.stringify(name),
    );
    if (!engine) continue;
    taken++;
    // Bypasses all checks in TypeScript.
    t.is(image.snapshotInfo(name).name, name);
    await image.delete(name);
  }
  t.true(taken > 400);
});

async function engineAccepts(image: Image, name: string): Promise<boolean> {
  try {
    await image.native.snapshot(name, null, null);
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'PCOW_INVALID') return false;
    throw error;
  }
}
