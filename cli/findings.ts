/** What a check has found, for people: a line for each finding. */
import type { Finding } from '../src/engine/index.js';
import { out } from './colors.js';

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

/** “one fault”, “3 faults”. */
export function counted(count: number, what: string): string {
  return count === 1 ? `one ${what}` : `${count} ${what}s`;
}
