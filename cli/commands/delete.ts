import type { Command } from 'commander';
import { InvalidArgumentError } from 'commander';
import type { SnapshotInfo } from '../../src/engine/index.js';
import { deleteSnapshot } from '../../src/client/change-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { quote } from '../../src/engine/quote.js';
import { forEach } from '../output/several-images.js';
import { findSnapshotTarget, type ImageTarget, whileWaiting } from '../find-image.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options {
  keep?: number;
  dryRun?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

interface Doomed {
  image: ImageTarget;
  snapshot: string;
}

export function addDelete(program: Command): void {
  const command = program
    .command('delete')
    .summary('delete snapshots')
    .description('Deletes snapshots. Data that other snapshots or the image itself need is kept.')
    .argument(
      '<image@name...>',
      'the image and the snapshot to delete; in NAME, * and ? stand for any characters',
    )
    .option(
      '--keep <number>',
      'of the snapshots that a NAME matches, keep this number of the newest',
      parseCount,
    )
    .option('-n, --dry-run', 'only print what would be deleted')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(remove);
  addNotes(command, {
    text: [
      'A snapshot that other images of the directory stand on is not deleted; the message names these ' +
        'images. Images in other directories are not known: keep images and their bases together. If one of ' +
        'several snapshots cannot be deleted, the others are still deleted, and the exit code is that of ' +
        'the first failure.',
      'A NAME with * or ? stands for all snapshots that it matches, oldest first. It matches automatic ' +
        'snapshots only if it begins as their names do (auto-*). If there is a snapshot with exactly that ' +
        'name, only that one is meant.',
    ],
    examples: [
      { command: 'pcow delete vm1@before-upgrade', does: 'of an image that is not mounted' },
      { command: 'pcow delete /mnt/vm1@before-upgrade', does: 'through the mount' },
      {
        command: "pcow delete 'vm1@daily-*' --keep 7 --dry-run",
        does: 'shows all but the newest seven',
      },
    ],
  });
}

async function remove(
  givens: string[],
  { keep, dryRun = false, json = false, wait, progress }: Options,
): Promise<void> {
  const doomed: Doomed[] = [];
  for (const given of givens) doomed.push(...(await standingFor(given, keep)));
  const each = doomed.filter(
    ({ image, snapshot }, at) =>
      doomed.findIndex(
        (other) => other.image.file === image.file && other.snapshot === snapshot,
      ) === at,
  );
  if (each.length === 0 && !json) say('nothing to delete');
  const deleted = await forEach(each, async ({ image, snapshot }) => {
    const name = `${image.name}@${snapshot}`;
    if (!dryRun) {
      await patiently(wait, () =>
        withProgress(`delete ${name}`, progress, (long) =>
          deleteSnapshot(image, snapshot, { ...long, ...whileWaiting }),
        ),
      );
    }
    if (!json) say(`${dryRun ? 'would delete' : 'deleted'} ${name}`);
    return { image: image.file, snapshot };
  });
  if (json) sayJson({ deleted, dryRun });
}

/** The snapshots that an argument matches, oldest first, without those to keep. */
async function standingFor(given: string, keep: number | undefined): Promise<Doomed[]> {
  const { image, snapshot } = await findSnapshotTarget(given);
  const asked = { image, snapshot };
  const pattern = /[*?]/.test(snapshot);
  if (!pattern && keep === undefined) return [asked];
  const snapshots = await withImage(image.file, {}, (open) => open.snapshots({ countData: false }));
  const exact = snapshots.filter(({ name }) => name === snapshot);
  const fitting =
    exact.length > 0 || !pattern ? exact : snapshots.filter((it) => fits(it, snapshot));
  if (fitting.length === 0 && keep === undefined) {
    throw new Failure(
      'PCOW_NOT_FOUND',
      `${image.name} has no snapshot that matches ${quote(snapshot)}`,
    );
  }
  // Snapshots of the same moment are in the order in which they were taken, as in the image's layer
  // directory.
  const oldestFirst = [...fitting].sort((a, b) => a.created.getTime() - b.created.getTime());
  return oldestFirst
    .slice(0, Math.max(0, oldestFirst.length - (keep ?? 0)))
    .map(({ name }) => ({ image, snapshot: name }));
}

function fits({ name, automatic }: SnapshotInfo, pattern: string): boolean {
  const parts = pattern.split(/([*?])/).map((part) => {
    if (part === '*') return '.*';
    return part === '?' ? '.' : part.replace(/[\\^$.|()[\]{}+]/g, '\\$&');
  });
  const begun = pattern.replace(/[*?].*$/s, '');
  return new RegExp(`^${parts.join('')}$`, 'su').test(name) && (!automatic || begun !== '');
}

function parseCount(text: string): number {
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError('it must be a number.');
  return Number(text);
}
