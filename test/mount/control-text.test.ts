/**
 * Random bytes written to control files: a command or a refusal, never another error, and never a
 * path that leads elsewhere.
 */
import { readdir } from 'node:fs/promises';

import test from 'ava';

import { PcowError } from '../../src/engine/index.js';
import { commandText, wordsOf } from '../../src/mount/control/control-text.js';
import { checkNewImageName } from '../../src/images/image-names.js';
import { MiB, mountedImages } from '../helpers/mount.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';

const ROUNDS = 20_000;
const WORDS = [
  's',
  'vm1',
  '../vm1',
  '..',
  '.',
  '/etc/passwd',
  'a/b',
  '.pcow',
  'x@y',
  '\u00e9',
  '\ufeff',
  '-1',
  '1e99',
  '9'.repeat(300),
];

/** A text of the words above, in which some bytes are changed, inserted or removed. */
function mutated(random: Random): Buffer {
  const words = Array.from({ length: random.below(5) }, () => random.pick(WORDS));
  const bytes = [
    ...Buffer.from(
      words.join(random.pick([' ', '\t', '  ', '\n', '\0'])) + random.pick(['', '\n', '\n\n']),
    ),
  ];
  for (let changes = random.below(4); changes > 0; --changes) {
    bytes.splice(
      random.below(bytes.length + 1),
      random.below(2),
      ...(random.chance(0.7) ? [random.below(256)] : []),
    );
  }
  return Buffer.from(
    random.chance(0.01)
      ? Buffer.concat(Array.from({ length: 2000 }, () => Buffer.from(bytes)))
      : bytes,
  );
}

test('the text of a command is valid words, or it is refused', (t) => {
  const random = new Random(seedFromEnvironment());
  t.log(`seed ${random.seed}`);
  let accepted = 0;
  for (let round = 0; round < ROUNDS; ++round) {
    const bytes = mutated(random);
    const where = `seed ${random.seed}, round ${round}`;
    try {
      const text = commandText(bytes);
      if (/[\n\0]/.test(text)) t.fail(`${where}: ${JSON.stringify(text)}`);
      for (const word of wordsOf(text, 1, 3, 'words')) {
        if (word === '' || /[ \t]/.test(word)) t.fail(`${where}: ${JSON.stringify(word)}`);
        checkNewImageName(word);
        if (word.includes('/') || word.startsWith('.'))
          t.fail(`${where}: ${JSON.stringify(word)} is no name`);
        accepted += 1;
      }
    } catch (error) {
      if (!(error instanceof PcowError)) throw error;
    }
  }
  t.true(accepted > ROUNDS / 50, `${accepted} names were accepted`);
});

test.serial(
  'random bytes written to control files make no file elsewhere, and do not end the mount',
  async (t) => {
    const random = new Random(seedFromEnvironment());
    t.log(`seed ${random.seed}`);
    const mount = await mountedImages(t, { vm1: MiB });
    const before = await readdir(mount.scratch);
    for (let round = 0; round < 150; ++round) {
      const control = random.pick(['snapshot', 'rollback', 'delete', 'clone', 'resize']);
      const path = random.chance(0.2) ? ['snapshot'] : ['vm1', control];
      const bytes = mutated(random);
      if (bytes.length === 0 || control === 'resize') continue;
      await mount.write(bytes, ...path).catch((error: unknown) => {
        t.regex(
          String((error as NodeJS.ErrnoException).code),
          /^E[A-Z0-9]+$/,
          `seed ${random.seed}, round ${round}`,
        );
      });
    }
    t.deepEqual(await readdir(mount.scratch), before);
    for (const name of await readdir(mount.images)) t.regex(name, /^[^.].*\.pcow$/);
    t.is((await mount.status('vm1')).state, 'ok');
  },
);
