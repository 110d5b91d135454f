import type { Command } from 'commander';
import { compareContents, type Comparison } from '../../src/convert/compare.js';
import { isPcowError } from '../../src/engine/errors.js';
import { openContents } from '../../src/convert/open-contents.js';
import { findTarget } from '../find-image.js';
import { Failure } from '../output/errors.js';
import { exitCodeOf } from '../output/exit-codes.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';

interface Options {
  format?: string;
  secondFormat?: string;
  strict?: boolean;
  json?: boolean;
  progress?: ProgressForm;
}

export function addCompare(program: Command): void {
  const command = program
    .command('compare')
    .summary('compare the content of two images')
    .description(
      'Compares two images byte by byte: Pcow images, snapshots, raw files, and formats that QEMU knows.',
    )
    .argument('<first>', 'an image, IMAGE@SNAPSHOT, or another file')
    .argument('<second>', 'what to compare it with')
    .option(
      '-f <format>',
      'format of the first: pcow, raw, or one of qemu-img’s; default: it is detected',
    )
    .option('-F <format>', 'format of the second')
    .option(
      '-s, --strict',
      'also fail if the sizes differ, or if one holds data where the other holds none',
    )
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(
      async (
        first: string,
        second: string,
        { f, F, ...options }: Options & { f?: string; F?: string },
      ) =>
        compare(first, second, {
          ...options,
          ...(f !== undefined && { format: f }),
          ...(F !== undefined && { secondFormat: F }),
        }),
    );
  addNotes(command, {
    text: [
      'The exit codes are those of “qemu-img compare”: 0 for the same content, 1 for different content, ' +
        'larger ones for failures. Without --strict, images of different size are the same if the rest of ' +
        'the longer one is zeros.',
    ],
    examples: [
      { command: 'pcow compare vm1@monday vm1', does: 'the present content with a snapshot' },
      { command: 'pcow compare vm1 vm1.qcow2', does: 'with a copy in another format' },
      {
        command: 'pcow compare -s vm1 /backup/vm1',
        does: 'also whether both hold data in the same ranges',
      },
    ],
  });
}

async function compare(first: string, second: string, options: Options): Promise<void> {
  try {
    const result = await compared(first, second, options);
    if (options.json === true) {
      sayJson(result.same ? { same: true, offset: null, why: null } : result);
    } else {
      say(sentenceOf(result));
    }
    if (!result.same) {
      process.exitCode = 1;
    }
  } catch (error) {
    // Here exit code 1 means that the contents differ.
    if (isPcowError(error) && exitCodeOf(error.code) === 1) {
      throw new Failure('PCOW_IO', error.message);
    }
    throw error;
  }
}

function compared(first: string, second: string, options: Options): Promise<Comparison> {
  return withProgress(`compare ${first} ${second}`, options.progress, async (long) => {
    const left = await openContents(await findTarget(first), {
      format: options.format,
      signal: long.signal,
    });
    try {
      const right = await openContents(await findTarget(second), {
        format: options.secondFormat,
        signal: long.signal,
      });
      try {
        return await compareContents(left, right, { strict: options.strict ?? false, ...long });
      } finally {
        await right.close();
      }
    } finally {
      await left.close();
    }
  });
}

function sentenceOf(result: Comparison): string {
  if (result.same) {
    return 'Images are identical.';
  }
  switch (result.why) {
    case 'content':
      return `Content mismatch at offset ${result.offset}!`;
    case 'allocation':
      return `Strict mode: Offset ${result.offset} allocation mismatch!`;
    case 'size':
      return 'Strict mode: Image size mismatch!';
  }
}
