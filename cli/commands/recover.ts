import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { type DirectoryRecovery, recoverDirectory, recoverImage } from '../../src/engine/index.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { findImage } from '../find-image.js';

export function addRecover(program: Command): void {
  const command = program
    .command('recover')
    .summary('make durable what killed programs have written')
    .description(
      'Makes durable what a killed mount, guest or command has written to images and not synced, so that ' +
        'nothing is lost when the host restarts.',
    )
    .argument('<what...>', 'image directories, or images')
    .option('--json', 'for programs')
    .action(recover);
  addNotes(command, {
    text: [
      'While the host runs, a killed program loses nothing: the kernel has what it wrote. After a mount is ' +
        'killed, this is done automatically, and so it is by each “pcow mount” of the directory. The systemd ' +
        'unit runs it when the service ends.',
      'Images that a process has open for writing are skipped, and so are those that need no recovery.',
    ],
    examples: [{ command: 'pcow recover /srv/images', does: 'all images of the directory' }],
  });
}

async function recover(given: string[], { json }: { json?: boolean }): Promise<void> {
  const all: DirectoryRecovery = { recovered: [], inUse: [], failed: [] };
  for (const what of given) {
    if (await isDirectory(what)) {
      const { recovered, inUse, failed } = await recoverDirectory(what);
      all.recovered.push(...recovered);
      all.inUse.push(...inUse);
      all.failed.push(...failed);
    } else {
      const { file } = await findImage(what);
      const done = await recoverImage(file);
      if (done === 'recovered') all.recovered.push(file);
      if (done === 'in use') all.inUse.push(file);
    }
  }
  if (json === true)
    sayJson({
      recovered: all.recovered,
      inUse: all.inUse,
      failed: all.failed.map(({ image }) => image),
    });
  else for (const image of all.recovered) say(`${image} is recovered`);
  // If one fails, the others are recovered nevertheless; the first error is the command's.
  const [first] = all.failed;
  if (first) throw first.error;
}

async function isDirectory(what: string): Promise<boolean> {
  try {
    return (await stat(what)).isDirectory();
  } catch {
    return false; // if something is wrong with it, findImage() reports it
  }
}
