/**
 * `pcow-img`: the commands of the original Pcow's tool, for existing scripts. Sizes are in its
 * units, names are used as given, snapshots are numbered from 1; everything else is as in `pcow`.
 */
import type { Command } from 'commander';
import type { Image } from '../src/engine/index.js';
import { rebaseUnsafely, rollbackImage, snapshotImages } from '../src/client/change-image.js';
import { isPcowError } from '../src/engine/errors.js';
import { Failure } from './output/errors.js';
import { addNotes } from './output/help.js';
import { withImage } from '../src/images/with-image.js';
import { makeImage } from '../src/client/make-image.js';
import { formatTime, say } from './output/stdout.js';
import { newProgram } from './run-program.js';
import { quote, word } from '../src/engine/quote.js';
import { formatSize, parseBlockSize, parseSize } from '../src/images/sizes.js';
import { describeState } from './output/image-state-text.js';
import { facts } from './output/table.js';
import { findImage, findTarget, imageAsNamed, whileWaiting } from './find-image.js';

export function pcowImgProgram(): Command {
  const program = newProgram('pcow-img').description(
    'The words of the original Pcow tool. See “pcow” for everything else.',
  );
  addNotes(
    program
      .command('create')
      .summary('make a new image')
      .description('Makes a new image, empty or on the present content of a base.')
      .argument('<block-kib>', 'the block size in KiB, a power of two from 4 to 2048')
      .argument('<size-gib>', 'the size in GiB')
      .argument('<new>', 'the file to make')
      .argument('[base]', 'the image to stand on')
      .action(create),
    {
      examples: [
        { command: 'pcow-img create 64 128 my_pcow_file.img', does: '128 GiB in blocks of 64 KiB' },
      ],
    },
  );
  addNotes(
    program
      .command('snapshot')
      .summary('take a snapshot')
      .description('Takes a snapshot, with the next number.')
      .argument('<image>')
      .action(snapshot),
    {
      examples: [
        { command: 'pcow-img snapshot my_pcow_file.img', does: 'snapshot 1 of a new image' },
      ],
    },
  );
  addNotes(
    program
      .command('rollback')
      .summary('go back to a snapshot')
      .description(
        'Gives the image the content of its snapshot with this number. Later snapshots are kept.',
      )
      .argument('<image>')
      .argument('<number>', 'from 1, the oldest')
      .action(rollback),
    {
      examples: [
        { command: 'pcow-img rollback my_pcow_file.img 1', does: 'back to the oldest snapshot' },
      ],
    },
  );
  addNotes(
    program
      .command('rebase')
      .summary('put an image on another base')
      .description(
        'Changes the base of an image without comparing contents, as the original tool did.',
      )
      .argument('<image>')
      .argument('<base>', 'the new base, with its present content; or BASE@SNAPSHOT')
      .action(rebase),
    {
      text: [
        'The new base must hold the same data as the old one, or the content of the image changes: this is ' +
          'for a base that was moved or copied. The old one need not exist any more.',
      ],
      examples: [
        { command: 'pcow-img rebase vm.img ../bases/base.img', does: 'after its base was moved' },
      ],
    },
  );
  addNotes(
    program
      .command('info')
      .summary('show information about an image')
      .description('Shows the size, the base and the numbered snapshots of an image.')
      .argument('<image>')
      .action(info),
    { examples: [{ command: 'pcow-img info my_pcow_file.img', does: 'with its snapshots' }] },
  );
  return program;
}

async function create(
  blockKib: string,
  sizeGib: string,
  given: string,
  base: string | undefined,
): Promise<void> {
  const blockSize = parseBlockSize(inUnits(blockKib, 'K', 'block size in KiB'));
  const size = parseSize(inUnits(sizeGib, 'G', 'size in GiB'));
  const target = await imageAsNamed(given);
  try {
    const below = base === undefined ? undefined : await findTarget(base);
    await makeImage(target, { size, blockSize, base: below, ...whileWaiting });
  } catch (error) {
    // This tool has no --force.
    if (!isPcowError(error, 'PCOW_EXISTS')) throw error;
    throw new Failure(error.code, error.message, 'choose another name, or remove it first');
  }
  say(`created ${target.file}: ${formatSize(size)}, blocks of ${formatSize(blockSize)}`);
}

async function snapshot(given: string): Promise<void> {
  const target = await findImage(given);
  const taken = await withImage(target.file, {}, (image) => image.snapshotNames());
  const name = nextName(taken);
  await snapshotImages(name, [target], whileWaiting);
  say(`snapshot ${taken.length + 1} of ${given} taken (${name})`);
}

async function rollback(given: string, number: string): Promise<void> {
  const target = await findImage(given);
  const names = await withImage(target.file, {}, (image) => image.snapshotNames());
  const name = /^[1-9]\d{0,8}$/.test(number) ? names[Number(number) - 1] : undefined;
  if (name === undefined) {
    const have = names.length === 0 ? 'it has none' : `it has 1 to ${names.length}`;
    throw new Failure(
      'PCOW_NOT_FOUND',
      `there is no snapshot ${quote(number)} of ${quote(given)}: ${have}`,
      `pcow-img info ${word(given)}`,
    );
  }
  await rollbackImage(target, name, whileWaiting);
  say(`${given} is back at snapshot ${number} (${name})`);
}

async function rebase(given: string, newBase: string): Promise<void> {
  const target = await findImage(given);
  await rebaseUnsafely(target, await findTarget(newBase), whileWaiting);
  say(`${given} now stands on ${newBase}`);
}

async function info(given: string): Promise<void> {
  const target = await findImage(given);
  const { image, snapshots } = await withImage(target.file, {}, (open: Image) => ({
    image: open.info(),
    snapshots: open.snapshots(),
  }));
  say(
    facts([
      ['image', image.path],
      ['size', `${formatSize(image.size)}, blocks of ${formatSize(image.blockSize)}`],
      ['disk use', formatSize(image.diskUse)],
      ['base', image.base?.path ?? 'none'],
      ['state', describeState(image)],
      ...snapshots.map(({ name, created }, i): [string, string] => [
        `snapshot ${i + 1}`,
        `${formatTime(created)}  ${name}`,
      ]),
    ]),
  );
}

/** Adds the unit: `64` becomes `64K`. A number that already has a unit is an error here. */
function inUnits(text: string, unit: string, what: string): string {
  if (!/^[+-]?\d+(\.\d+)?$/.test(text)) {
    throw new Failure(
      'PCOW_INVALID',
      `${quote(text)} is not a ${what}`,
      'write a plain number: pcow-img create 64 128 NEW',
    );
  }
  return text + unit;
}

function nextName(taken: string[]): string {
  let number = taken.length + 1;
  while (taken.includes(`snapshot-${number}`)) {
    number += 1;
  }
  return `snapshot-${number}`;
}
