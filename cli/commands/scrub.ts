import { type Command, Option } from 'commander';
import type { ScrubReport } from '../../src/engine/index.js';
import { addChecksums, removeChecksums } from '../../src/client/change-image.js';
import { FOUND_DAMAGE } from '../output/exit-codes.js';
import { counted, findingLines } from '../output/check-findings.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { formatSize } from '../../src/images/sizes.js';
import { findImage, type ImageTarget, whileWaiting } from '../find-image.js';
import { word } from '../../src/engine/quote.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options {
  add?: boolean;
  remove?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

export function addScrub(program: Command): void {
  const command = program
    .command('scrub')
    .summary('verify the bytes of snapshots by their checksums')
    .description(
      'Reads all bytes of snapshots that have checksums from the disk, and reports which of them have ' +
        'changed since the checksums were made.',
    )
    .argument('<image>', 'the image, which may be in use')
    .option('--add', 'then make the missing checksums')
    .addOption(new Option('--remove', 'only remove all checksums').conflicts('add'))
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(scrub);
  addNotes(command, {
    text: [
      'Snapshots have checksums only if you request them: --add makes them, and so does “pcow mount ' +
        '--checksums” after each snapshot. What has been written since the last snapshot has none. From then ' +
        'on, reading a damaged block fails with an error (EIO; SIGBUS for a process under the monitor), and ' +
        'does not return wrong bytes.',
      'Overwrite a damaged block, or go back to a copy. After --remove, it is read as it is on the disk. ' +
        'An older pcow that does not know checksums can read an image that has some, but not write it.',
      'A base is another image: scrub it separately. The exit code is 0 if nothing is damaged, and 13 for ' +
        'damage.',
    ],
    examples: [
      { command: 'pcow scrub vm1 --add', does: 'verifies, and makes missing checksums' },
      { command: 'pcow scrub /mnt/vm1', does: 'also while it is in use' },
      { command: 'pcow scrub vm1 --json | jq .damages', does: 'for programs' },
    ],
  });
}

async function scrub(
  given: string,
  { add = false, remove = false, json = false, wait, progress }: Options,
): Promise<void> {
  const target = await findImage(given);
  if (remove) {
    await patiently(wait, () => change(target, 'remove', progress));
    if (json) sayJson({ name: target.name, removed: true });
    else say(`${target.file} no longer has checksums`);
    return;
  }
  const look = () =>
    withImage(target.file, {}, (image) =>
      withProgress(`scrub ${target.name}`, progress, (options) => image.scrub(options)),
    );
  const report = await look();
  if (add) await patiently(wait, () => change(target, 'add', progress));
  if (json)
    sayJson({
      name: target.name,
      outcome: report.damages > 0 ? 'damaged' : 'sound',
      added: add,
      ...report,
    });
  else say([...findingLines(report.findings), ...summary(target, report, add)].join('\n'));
  if (report.damages > 0) process.exitCode = FOUND_DAMAGE;
}

async function change(
  target: ImageTarget,
  what: 'add' | 'remove',
  form: ProgressForm | undefined,
): Promise<void> {
  const work = what === 'add' ? addChecksums : removeChecksums;
  await withProgress(`checksums of ${target.name}`, form, (long) =>
    work(target, { ...long, ...whileWaiting }),
  );
}

function summary(target: ImageTarget, report: ScrubReport, added: boolean): string[] {
  const { verified, damages, layers } = report;
  const lines = [
    `${target.file}: ${formatSize(verified)} verified, ${damages === 0 ? 'nothing' : counted(damages, 'place')} damaged`,
  ];
  const missing = layers.filter((layer) => layer.missing > 0);
  const bytes = missing.reduce((sum, layer) => sum + layer.missing, 0);
  if (layers.length === 0) {
    lines.push('it has no snapshots: what is still written to has no checksums');
  } else if (bytes > 0 && added) {
    lines.push(`checksums made of ${formatSize(bytes)} more`);
  } else if (bytes > 0) {
    const named = missing.map(
      ({ snapshot, missing: its }) => `${snapshot ?? 'a deleted snapshot'} ${formatSize(its)}`,
    );
    lines.push(
      `without checksums: ${named.join(', ')}; “pcow scrub ${word(target.given)} --add” makes them`,
    );
  }
  return lines;
}
