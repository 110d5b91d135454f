import type { Command } from 'commander';
import { measure } from '../../src/convert/measure.js';
import { openContents } from '../../src/convert/open-contents.js';
import { findTarget } from '../find-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { formatSize, parseBlockSize, parseSize } from '../../src/images/sizes.js';
import { facts } from '../output/table.js';

interface Options {
  f?: string;
  size?: string;
  blockSize: string;
  json?: boolean;
  progress?: ProgressForm;
}

export function addMeasure(program: Command): void {
  const command = program
    .command('measure')
    .summary('show how much disk space an image would take')
    .description(
      'Shows how much disk space an image would take with the content of another image or file, or empty.',
    )
    .argument('[source]', 'an image, IMAGE@SNAPSHOT, or another file')
    .option(
      '-f <format>',
      'format of the source: pcow, raw, or one of qemu-img’s; default: it is detected',
    )
    .option('--size <size>', 'instead of a source: the size of an empty image')
    .option('--block-size <size>', 'of the image', '64K')
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(measureCommand);
  addNotes(command, {
    text: [
      '“required” is the space that the image takes with that content. “fully allocated” is the space that ' +
        'it can grow to before its first snapshot. Holes of the source take no space; zeros that it holds as ' +
        'data do.',
    ],
    examples: [
      { command: 'pcow measure disk.qcow2', does: 'before it is converted' },
      { command: 'pcow measure --size 100G --json', does: 'of an empty image, as JSON' },
    ],
  });
}

async function measureCommand(source: string | undefined, options: Options): Promise<void> {
  const blockSize = parseBlockSize(options.blockSize);
  if ((source === undefined) === (options.size === undefined)) {
    throw new Failure(
      'PCOW_USAGE',
      'measure takes a source or --size, not both',
      'pcow measure --help',
    );
  }
  const result =
    source === undefined
      ? await measure(parseSize(options.size ?? ''), blockSize, null)
      : await measureSource(source, blockSize, options);
  if (options.json === true) {
    // The field names of “qemu-img measure”.
    sayJson({ required: result.required, 'fully-allocated': result.fullyAllocated });
  } else {
    say(
      facts([
        ['required', `${formatSize(result.required)} (${result.required} bytes)`],
        [
          'fully allocated',
          `${formatSize(result.fullyAllocated)} (${result.fullyAllocated} bytes)`,
        ],
      ]),
    );
  }
}

function measureSource(source: string, blockSize: number, options: Options) {
  return withProgress(`measure ${source}`, options.progress, async (long) => {
    const contents = await openContents(await findTarget(source), {
      format: options.f,
      signal: long.signal,
    });
    try {
      return await measure(contents.size, blockSize, contents, long);
    } finally {
      await contents.close();
    }
  });
}
