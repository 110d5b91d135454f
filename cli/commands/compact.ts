import type { Command } from 'commander';
import { askForWork } from '../control.js';
import { addNotes } from '../help.js';
import { withImage } from '../images.js';
import { say, sayJson } from '../output.js';
import { type ProgressForm, progressOption, withProgress } from '../progress.js';
import { formatSize } from '../size.js';
import { findImage } from '../target.js';
import { patiently, waitOption } from '../waiting.js';

export function addCompact(program: Command): void {
  const command = program
    .command('compact')
    .summary('give back the space of zeros')
    .description('Gives blocks that hold nothing but zeros back to the file system, of the image and of its snapshots.')
    .argument('<image>', 'the image')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(compact);
  addNotes(command, {
    text: [
      'Nobody sees a difference but “du”. A guest that discards what it deletes (fstrim, mount -o discard) does not need it; ' +
        'for others, fill the free space of its file systems with zeros first.',
    ],
    examples: [
      { command: 'pcow compact vm1', does: 'of an image at rest' },
      { command: 'pcow compact /mnt/vm1', does: 'through the mount, also while it is used' },
    ],
  });
}

interface Options {
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

async function compact(given: string, { json, wait, progress }: Options): Promise<void> {
  const image = await findImage(given);
  const diskUse = () => withImage(image.file, {}, (open) => open.info().diskUse);
  const before = await diskUse();
  const { mount, name, file } = image;
  await patiently(wait, () =>
    mount === null
      ? withImage(file, { write: true }, (open) =>
          withProgress(`compact ${name}`, progress, (options) => open.compact(options)),
        )
      : askForWork({ mount, name }, 'compact', 'now', `compact ${name}`, progress),
  );
  const after = await diskUse();
  if (json === true) sayJson({ image: image.file, before, after });
  else say(`${image.name} takes ${formatSize(after)} now, ${formatSize(Math.max(0, before - after))} less than before`);
}
