import type { Command } from 'commander';
import type { Extent } from '../../src/engine/index.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { jsonLines, sayEach } from '../output/long-lists.js';
import { say } from '../output/stdout.js';
import {
  besideOutput,
  type Long,
  type ProgressForm,
  progressOption,
  reported,
  withProgress,
} from '../output/progress.js';
import { quote } from '../../src/engine/quote.js';
import { formatSize } from '../../src/images/sizes.js';
import { table } from '../output/table.js';
import { findSnapshotTarget, findTarget, type ImageTarget } from '../find-image.js';

export function addDiff(program: Command): void {
  const command = program
    .command('diff')
    .summary('list the ranges that changed since a snapshot')
    .description(
      'Lists the ranges of an image that may have changed since a snapshot. It reads the tables only, and ' +
        'compares no data.',
    )
    .argument('<image@name>', 'the image, and the older snapshot')
    .argument('[name]', 'the newer snapshot; default: the present content of the image')
    .option('--json', 'for programs')
    .addOption(progressOption())
    .action(diff);
  addNotes(command, {
    text: [
      'A range is listed if it was written or discarded, even if no byte changed. “zero” marks a range ' +
        'that reads as zeros now. Everything else is the same in both.',
    ],
    examples: [
      { command: 'pcow diff vm1@monday', does: 'what changed since' },
      { command: 'pcow diff vm1@monday tuesday --json', does: 'between two snapshots, as JSON' },
    ],
  });
}

interface Options {
  json?: boolean;
  progress?: ProgressForm;
}

async function diff(
  given: string,
  second: string | undefined,
  { json, progress }: Options,
): Promise<void> {
  const { image: target, snapshot: from } = await findSnapshotTarget(given);
  const to = second === undefined ? null : await secondSnapshot(target, second);
  await withImage(target.file, {}, async (image) => {
    const size = to === null ? image.info().size : image.snapshotInfo(to).size;
    const found = ({ signal, onProgress }: Long) =>
      changes(reported(image.diff(from, to, { signal }), size, onProgress));
    if (json === true) {
      await withProgress(`diff ${given}`, besideOutput(progress), (long) =>
        sayEach(jsonLines(found(long))),
      );
      return;
    }
    const rows: string[][] = [];
    let total = 0;
    await withProgress(`diff ${given}`, progress, async (long) => {
      for await (const { offset, length, kind } of found(long)) {
        rows.push([String(offset), String(length), kind]);
        total += length;
      }
    });
    if (rows.length === 0) {
      say(`nothing changed since ${target.name}@${from}`);
      return;
    }
    say(
      table(
        [
          { title: 'offset', align: 'right' },
          { title: 'length', align: 'right' },
          { title: 'now' },
        ],
        rows,
      ),
    );
    say(`${formatSize(total)} in ${rows.length === 1 ? '1 range' : `${rows.length} ranges`}`);
  });
}

/** `S2`, or `IMAGE@S2` of the same image. */
async function secondSnapshot(target: ImageTarget, given: string): Promise<string> {
  if (!given.includes('@')) {
    return given;
  }
  const { image, snapshot } = await findTarget(given);
  if (image.file !== target.file || snapshot === null) {
    throw new Failure(
      'PCOW_USAGE',
      `${quote(given)} is not a snapshot of ${target.name}: a diff is between two layers of one image`,
      '“pcow compare” compares any two images',
    );
  }
  return snapshot;
}

interface Change {
  offset: number;
  length: number;
  kind: 'data' | 'zero';
}

/** The differences, as ranges of data or zeros. Adjacent ranges are joined. */
async function* changes(extents: AsyncIterable<Extent>): AsyncGenerator<Change> {
  let held: Change | null = null;
  for await (const extent of extents) {
    const kind = kindOf(extent);
    if (held !== null && held.kind === kind && held.offset + held.length === extent.offset) {
      held.length += extent.length;
      continue;
    }
    if (held !== null) yield held;
    held = { offset: extent.offset, length: extent.length, kind };
  }
  if (held !== null) yield held;
}

function kindOf({ kind }: Extent): 'data' | 'zero' {
  return kind === 'data' ? 'data' : 'zero';
}
