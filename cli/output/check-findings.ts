/** The findings of a check as text, one line each. */
import type { CheckReport, Finding, Loss } from '../../src/engine/index.js';
import { out } from './colors.js';
import { formatSize } from '../../src/images/sizes.js';

export function findingLines(findings: readonly Finding[]): string[] {
  return findings.map((finding) => `${kindOf(finding)}: ${finding.message} (${placeOf(finding)})`);
}

function kindOf({ severity, repaired }: Finding): string {
  if (repaired) {
    return 'repaired';
  }
  return severity === 'damage' ? out.red(severity) : severity;
}

function placeOf({ structure, place, snapshot, offset, length }: Finding): string {
  const where = structure === 'base' ? [] : [`at byte ${place} of the file`];
  if (offset !== null && length !== null) {
    const view = snapshot === null ? 'the image' : `snapshot ${snapshot}`;
    where.push(`bytes ${offset} to ${offset + length - 1} of ${view}`);
  }
  return [structure, ...where].join(', ');
}

/** What a repair could not restore, as text; no lines if nothing is missing. */
export function lossLines({ losses, unplaced, blockSize, olderDirectory }: CheckReport): string[] {
  const lines: string[] = [];
  if (olderDirectory) {
    const undone = 'the newest layer directory could not be read, so the one before it is used';
    lines.push(`${out.red('lost')}: ${undone}: the last snapshot, deletion or resize is undone`);
  }
  for (const loss of losses) {
    const view = loss.snapshot === null ? 'the image' : `snapshot ${loss.snapshot}`;
    if (loss.gone > 0) {
      lines.push(
        `${out.red('lost')}: ${formatSize(loss.gone)} of ${view}: ${rangesOf(loss, true)}`,
      );
    }
    if (loss.doubtful > 0) {
      const size = formatSize(loss.doubtful);
      lines.push(
        `${out.red('doubtful')}: ${size} of ${view} may have changed: ${rangesOf(loss, false)}`,
      );
    }
  }
  if (unplaced > 0) {
    const size = formatSize(unplaced * (blockSize ?? 0));
    lines.push(`${out.red('lost')}: ${size} of data that belongs to an unknown part of the image`);
  }
  return lines;
}

const LISTED_RANGES = 20;

function rangesOf({ ranges }: Loss, certain: boolean): string {
  const chosen = ranges.filter((range) => range.certain === certain);
  const listed = chosen
    .slice(0, LISTED_RANGES)
    .map(({ offset, length }) => `${offset} to ${offset + length - 1}`);
  return `bytes ${listed.join(', ')}${chosen.length > LISTED_RANGES ? ', … (all with --json)' : ''}`;
}

/** “one fault”, “3 faults”. */
export function counted(count: number, what: string): string {
  return count === 1 ? `one ${what}` : `${count} ${what}s`;
}
