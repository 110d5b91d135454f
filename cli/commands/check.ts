import type { Command } from 'commander';
import { checkImage, type CheckReport } from '../../src/engine/index.js';
import { formatOf } from '../../src/convert/open-contents.js';
import { Failure } from '../output/errors.js';
import { FOUND_DAMAGE, FOUND_LEAKS, LOST_DATA } from '../output/exit-codes.js';
import { counted, findingLines, lossLines } from '../output/check-findings.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { failWith, forEach } from '../output/several-images.js';
import { formatSize } from '../../src/images/sizes.js';
import { findImage, type ImageTarget } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';
import { word } from '../../src/engine/quote.js';

interface Options {
  repair?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

export function addCheck(program: Command): void {
  const command = program
    .command('check')
    .summary('verify the structure of an image, and repair it')
    .description(
      'Verifies the structure of an image: both superblocks, the layer directory, every entry of every ' +
        'table, the base. Reports what is damaged, and where. The image may be in use, and may be one that ' +
        'cannot be opened.',
    )
    .argument('<image...>', 'the images')
    .option(
      '--repair',
      'repair what can be repaired without guessing; data that cannot be placed is kept in IMAGE.lost',
    )
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(check);
  addNotes(command, {
    text: [
      'Without --repair nothing is written. With it, the image must not be mounted or in use. Data that ' +
        'cannot be placed is appended to IMAGE.lost; for each piece, a line of JSON in IMAGE.lost.index ' +
        'describes it.',
      'The bytes of the blocks are not verified.',
      'With several images, each is verified, whatever is found in the others. The exit code is the first ' +
        'one that is not 0.',
      'The exit code is 0 for a sound image, 13 for damage, 14 if there are only bytes in free space, and ' +
        'another one (“pcow help exit-codes”) if the check could not be completed. After a repair it ' +
        'describes what is left. It is 15 if no damage is left, but data could not be restored: ' +
        'the last lines report how much of which snapshot, and where.',
    ],
    examples: [
      { command: 'pcow check vm1', does: 'reports that vm1.pcow is sound, or what is damaged' },
      { command: 'pcow check /srv/images/vm1.pcow --repair', does: 'repairs it' },
      {
        command: 'pcow check vm1 --json | jq .damages',
        does: 'for programs; for several images, a list',
      },
    ],
  });
}

async function check(givens: string[], options: Options): Promise<void> {
  const found = await forEach(givens, (given) => checkOne(given, options));
  if (options.json === true) sayJson(givens.length === 1 ? found[0] : found);
}

async function checkOne(
  given: string,
  { repair = false, json = false, progress, wait }: Options,
): Promise<object> {
  const target = await findImage(given);
  if (repair && target.mount !== null) {
    throw new Failure(
      'PCOW_BUSY',
      `${target.name} is mounted on ${target.mount.mountpoint}: a repair needs the image for itself`,
      `end the mount first: pcow umount ${word(target.mount.mountpoint)}`,
    );
  }
  await refuseForeign(target);
  const report = await patiently(repair ? wait : undefined, () =>
    withProgress(`check ${target.name}`, progress, (options) =>
      checkImage(target.file, { ...options, repair }),
    ),
  );
  if (!json) {
    say([...findingLines(report.findings), ...summary(target, report, repair)].join('\n'));
  }
  const outcome = outcomeOf(report);
  failWith(exitCodes[outcome]);
  return { name: target.name, outcome, ...report };
}

const exitCodes = { sound: 0, damaged: FOUND_DAMAGE, leaks: FOUND_LEAKS, lost: LOST_DATA };

/** An image of another program is not a damaged image of Pcow. */
async function refuseForeign({ file }: ImageTarget): Promise<void> {
  // If that cannot be found out (qemu-img is missing, or the file may not be read), the check
  // itself reports what it finds.
  const format = await formatOf(file).catch(() => 'raw');
  if (format === 'pcow' || format === 'raw') return;
  const hint =
    format === 'original'
      ? '“pcow convert” makes a Pcow image from it'
      : `qemu-img check -f ${format} ${word(file)}`;
  throw new Failure(
    'PCOW_NOT_AN_IMAGE',
    `${file} is not a Pcow image: its format is ${format}`,
    hint,
  );
}

type Outcome = 'sound' | 'damaged' | 'leaks' | 'lost';

/** `lost`: a repair has left no damage, but data is missing. */
function outcomeOf({ damages, leaks, losses, unplaced, olderDirectory }: CheckReport): Outcome {
  if (damages > 0) return 'damaged';
  if (leaks > 0) return 'leaks';
  return losses.length > 0 || unplaced > 0 || olderDirectory ? 'lost' : 'sound';
}

function summary(target: ImageTarget, report: CheckReport, repair: boolean): string[] {
  const lines: string[] = [];
  const { size, snapshots, data } = report;
  const figures =
    size === null
      ? ''
      : `: ${formatSize(size)}, ${counted(snapshots ?? 0, 'snapshot')}, ${formatSize(data ?? 0)} of data`;
  if (report.repaired > 0) {
    lines.push(`${counted(report.repaired, 'fault')} repaired`);
  }
  if (report.lost !== null) {
    lines.push(
      `what could not be placed is in ${report.lost}; ${report.lost}.index says what it is`,
    );
  }
  lines.push(...lossLines(report));
  if (repair && report.dropped > 0) {
    lines.push(
      `${formatSize(report.dropped)} that were never flushed when the host went down are dropped`,
    );
  }
  if (outcomeOf(report) === 'lost') {
    lines.push(
      `${target.file} has a sound structure again${figures}, but not all of its data: restore what is named above from a copy`,
    );
  } else if (outcomeOf(report) === 'sound') {
    lines.push(`${target.file} is sound${figures}`);
  } else {
    const found = [
      ...(report.damages > 0 ? [counted(report.damages, 'fault')] : []),
      ...(report.leaks > 0 ? [`${counted(report.leaks, 'block')} with bytes in free space`] : []),
    ].join(', ');
    const next = repair
      ? 'this cannot be repaired without guessing: restore the image from a copy'
      : `“pcow check ${word(target.given)} --repair” repairs what can be repaired`;
    lines.push(`${target.file}: ${found}${figures}`, next);
  }
  if (report.remote > 0) lines.push(`${formatSize(report.remote)} have not been fetched yet`);
  if (report.inUse) {
    lines.push('it is open for writing, so these figures may change');
  } else if (!report.clean) {
    const why = report.hostCrashed
      ? 'the host crashed while its last writer had it open'
      : 'its last writer was killed';
    const dropped = report.hostCrashed
      ? `; ${formatSize(report.dropped)} that were never flushed will be dropped`
      : '';
    lines.push(`${why}: the next opening for writing, or --repair, recovers it${dropped}`);
  }
  return lines;
}
