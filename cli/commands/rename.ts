import { rename as renameInMount } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { Image, renameImage } from '../../src/engine/index.js';
import { asking } from '../asking.js';
import { Failure } from '../errors.js';
import { addNotes } from '../help.js';
import { withImage } from '../images.js';
import { say, sayJson } from '../output.js';
import { quote, word } from '../quote.js';
import { explainOperation } from '../control.js';
import { findTarget, flatFile, type ImageTarget, newImage } from '../target.js';
import { patiently, waitOption } from '../waiting.js';

export function addRename(program: Command): void {
  const command = program
    .command('rename')
    .summary('give an image another name')
    .description('Gives an image another name in its directory. Images there that stand on it are told.')
    .argument('<image>', 'the image')
    .argument('<new>', 'its new name; “.pcow” is added where it is missing')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(rename);
  addNotes(command, {
    text: [
      'Images find their bases by path, and know them by their uuid: those of the same directory are told the new name, ' +
        'those of other directories have to be told with “pcow rebase --unsafe”. Neither the image nor one that stands on it may ' +
        'be in use by another process. Killed in the middle, the image has both names; the same command again finishes it.',
    ],
    examples: [{ command: 'pcow rename vm1 web', does: 'vm1.pcow becomes web.pcow' }],
  });
}

async function rename(
  given: string,
  newName: string,
  { json, wait }: { json?: boolean; wait?: number },
): Promise<void> {
  const { image, snapshot } = await findTarget(given);
  if (snapshot !== null) {
    throw new Failure(
      'PCOW_UNSUPPORTED',
      `${quote(given)} is a snapshot, and a snapshot keeps the name that it was taken under`,
      `what stands on it finds it by that; “pcow clone ${word(given)} NEW” makes an image of it`,
    );
  }
  // A plain name stays in the image's directory, wherever that is.
  const directory = image.mount === null ? path.dirname(image.file) : image.mount.mountpoint;
  const target = await newImage(newName.includes('/') ? newName : path.join(directory, newName));
  if (path.dirname(target.file) !== path.dirname(image.file)) {
    throw new Failure(
      'PCOW_INVALID',
      `${quote(newName)} lies in another directory than ${image.file}, and a rename keeps an image where it is`,
      'move the file with mv, and tell images that stand on it with “pcow rebase --unsafe”',
    );
  }
  if (target.file === image.file) {
    throw new Failure('PCOW_EXISTS', `${image.name} has that name already`);
  }
  if (image.mount === null) {
    await patiently(wait, () => renameAtRest(image, target));
  } else {
    const { mount } = image;
    await patiently(wait, () =>
      asking(mount, () => renameInMount(flatFile(image, mount), flatFile(target, mount))).catch(
        async (error: unknown) => {
          throw await explainOperation(error, mount, image.name, `mv ${image.name} ${target.name}`);
        },
      ),
    );
  }
  if (json === true) sayJson({ from: image.file, to: target.file });
  else say(`${image.name} is called ${target.name} now`);
}

async function renameAtRest(image: ImageTarget, target: ImageTarget): Promise<void> {
  // Open for writing: nobody else has it so, and nobody deletes it.
  await withImage(image.file, { write: true }, () =>
    renameImage(image.file, target.file, {
      open: async ({ image: file, layer }) => ({ image: await Image.open(file, { write: true }), layer }),
      close: ({ image: standing }) => standing.close(),
    }),
  );
}
