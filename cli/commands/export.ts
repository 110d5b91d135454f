import type { Command } from 'commander';
import { exportStream } from '../../src/stream/archive.js';
import { throughDraft } from '../../src/images/make-file.js';
import { addNotes } from '../output/help.js';
import { chainOf, withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { writeToFile, writeToStdout } from '../output/byte-streams.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { findImage, newFile } from '../find-image.js';

interface Options {
  force?: boolean;
  json?: boolean;
  progress?: ProgressForm;
}

export function addExport(program: Command): void {
  const command = program
    .command('export')
    .summary('write an image with its bases and snapshots as one file')
    .description('Writes an image, its bases and all its snapshots into one file.')
    .argument('<image>', 'the image')
    .argument('<file>', 'the file to make; “-”: standard output')
    .option('--force', 'replace an existing file')
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(exportCommand);
  addNotes(command, {
    text: [
      '“pcow import” makes an image without a base from it. The file appears only when it is complete, and ' +
        'is checked as a whole when it is imported. If the image is in use, its content beyond its snapshots ' +
        'is read while it changes: take a snapshot first.',
    ],
    examples: [
      { command: 'pcow export vm1 vm1.export', does: 'with everything that it needs' },
      { command: 'pcow export vm1 - | zstd > vm1.export.zst', does: 'compressed' },
    ],
  });
}

async function exportCommand(given: string, file: string, options: Options): Promise<void> {
  const target = await findImage(given);
  const written = file === '-' ? null : await newFile(file);
  const write = (to: string | null) =>
    withImage(target.file, {}, (image) =>
      withProgress(`export ${target.name}`, options.progress, async (long) => {
        const bytes = exportStream(image, long);
        await (to === null ? writeToStdout(bytes, long.signal) : writeToFile(to, bytes));
      }),
    );
  if (written === null) {
    await write(null);
    return;
  }
  await throughDraft(
    written,
    { replace: options.force, sources: await chainOf(target.file) },
    write,
  );
  if (options.json === true) {
    sayJson({ image: target.name, file });
  } else {
    say(`exported ${target.name} to ${file}`);
  }
}
