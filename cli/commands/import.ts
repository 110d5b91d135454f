import type { Command } from 'commander';
import { importStream } from '../../src/stream/archive.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { readFrom } from '../output/byte-streams.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { formatSize } from '../../src/images/sizes.js';
import { newImage } from '../find-image.js';

interface Options {
  json?: boolean;
  progress?: ProgressForm;
}

export function addImport(program: Command): void {
  const command = program
    .command('import')
    .summary('make an image from an exported file')
    .description(
      'Makes an image, with its snapshots, from a file of “pcow export”. It stands on no base.',
    )
    .argument('<file>', 'the file; “-”: standard input')
    .argument('<image>', 'the image to make; “.pcow” is added where it is missing')
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(importCommand);
  addNotes(command, {
    text: [
      'The image appears only when it is complete. All snapshots keep their names and times, including ' +
        'those of bases. If two have the same name, the name of the image is put before that of its own ' +
        'snapshot.',
    ],
    examples: [
      { command: 'pcow import vm1.export vm2', does: 'as another image' },
      { command: 'zstd -d < vm1.export.zst | pcow import - vm1', does: 'from a compressed file' },
    ],
  });
}

async function importCommand(file: string, given: string, options: Options): Promise<void> {
  const target = await newImage(given);
  const imported = await withProgress(`import ${target.name}`, options.progress, (long) =>
    importStream(readFrom(file === '-' ? null : file, long.signal), target.file, long),
  );
  if (options.json === true) {
    sayJson({ image: target.name, file: target.file, ...imported });
  } else {
    const { snapshots, size, data } = imported;
    const count = snapshots === 1 ? '1 snapshot' : `${snapshots} snapshots`;
    say(`imported ${target.file}: ${formatSize(size)}, ${count}, ${formatSize(data)} of data`);
  }
}
