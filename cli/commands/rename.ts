import path from 'node:path';
import type { Command } from 'commander';
import { renameImage, renameSnapshot } from '../../src/client/change-image.js';
import { checkSnapshotName } from '../../src/engine/index.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { quote, word } from '../../src/engine/quote.js';
import { findTarget, newImage, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

export function addRename(program: Command): void {
  const command = program
    .command('rename')
    .summary('give an image, or a snapshot, another name')
    .description(
      'Gives an image another name in its directory, or a snapshot another name in its image.',
    )
    .argument('<image[@name]>', 'the image, or a snapshot of it')
    .argument('<new>', 'the new name; for an image, “.pcow” is added if it is missing')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .action(rename);
  addNotes(command, {
    text: [
      'A snapshot keeps its content and its identity: clones still stand on it without being changed, and ' +
        'increments can be sent from it by its new name. An automatic snapshot becomes an ordinary one. A ' +
        'snapshot whose file in a mount is open is not renamed.',
      'An image finds its base by a path, and recognises it by its uuid. Images in the same directory that ' +
        'stand on this one are given its new name; for images in other directories, use “pcow rebase ' +
        '--unsafe”. No other process may use the image, or an image that stands on it. If the command is ' +
        'killed in the middle, the image has both names; run the same command again to finish.',
    ],
    examples: [
      { command: 'pcow rename vm1 web', does: 'vm1.pcow becomes web.pcow' },
      {
        command: 'pcow rename vm1@auto-2026-01-31 golden',
        does: 'a snapshot; also through the mount, under a running guest',
      },
    ],
  });
}

async function rename(
  given: string,
  newName: string,
  { json, wait }: { json?: boolean; wait?: number },
): Promise<void> {
  const { image, snapshot } = await findTarget(given);
  if (snapshot !== null) {
    const to = newSnapshotName(given, snapshot, newName);
    await patiently(wait, () => renameSnapshot(image, snapshot, to, whileWaiting));
    if (json === true) sayJson({ image: image.file, from: snapshot, to });
    else say(`${image.name}@${snapshot} is now ${image.name}@${to}`);
    return;
  }
  // A plain name stays in the image's directory.
  const directory = image.mount === null ? path.dirname(image.file) : image.mount.mountpoint;
  const target = await newImage(newName.includes('/') ? newName : path.join(directory, newName));
  await patiently(wait, () => renameImage(image, target, whileWaiting));
  if (json === true) sayJson({ from: image.file, to: target.file });
  else say(`${image.name} is now ${target.name}`);
}

/** As in ZFS: NEW, @NEW, or the image again and @NEW. */
function newSnapshotName(given: string, snapshot: string, newName: string): string {
  const image = given.slice(0, -snapshot.length - 1);
  const at = newName.lastIndexOf('@');
  const to = newName.slice(at + 1);
  if (at > 0 && newName.slice(0, at) !== image) {
    throw new Failure(
      'PCOW_INVALID',
      `${quote(newName)} is a snapshot of another image than ${quote(given)}, and a snapshot stays with its image`,
      `“pcow send” and “pcow receive” copy one; to rename it: pcow rename ${word(given)} ${word(`${image}@${to}`)}`,
    );
  }
  checkSnapshotName(to);
  return to;
}
