/** Lines that fit a terminal. */
import type { Column } from './table.js';

/** Truncated at the end, with a mark. */
export function truncated(text: string, width: number): string {
  const signs = [...text];
  return signs.length <= width ? text : `${signs.slice(0, Math.max(0, width - 1)).join('')}…`;
}

const WIDEST_BAR = 60;
const NARROWEST_BAR = 8;

/**
 * A progress line. If it is too long, the time left is dropped first, then the rate; then the label
 * is truncated.
 */
export function progressLine(
  label: string,
  progress: number,
  { rate, left }: { rate: string; left: string },
  width: number,
): string {
  const percentage = `${String(Math.floor(progress * 100)).padStart(3)}%`;
  const room = width - 1; // a cursor in the last column would start a new line
  for (const parts of [[percentage, rate, left], [percentage, rate], [percentage]]) {
    const tail = parts.filter((part) => part !== '').join('  ');
    const least = NARROWEST_BAR + 1 + tail.length;
    if (parts.length > 1 && [...label].length + 1 + least > room) continue;
    const shown = truncated(label, Math.max(0, room - least - 1));
    const bar = Math.min(WIDEST_BAR, room - [...shown].length - 2 - tail.length);
    const done = Math.round(Math.max(0, bar) * Math.min(1, progress));
    return truncated(
      `${shown} ${'█'.repeat(done)}${'░'.repeat(Math.max(0, bar - done))} ${tail}`,
      room,
    );
  }
  return '';
}

/**
 * A column, and when it is dropped for lack of space: the highest number first; columns without a
 * number never.
 */
export interface FittingColumn extends Column {
  dispensable?: number;
}

/**
 * The columns and rows of a table that fit, with two spaces between them; if that is not enough,
 * the first column is truncated.
 */
export function fitted(
  columns: FittingColumn[],
  rows: string[][],
  width: number,
): { columns: Column[]; rows: string[][] } {
  const widths = columns.map(({ title }, at) =>
    Math.max(...[title, ...rows.map((row) => row[at] ?? '')].map((cell) => [...cell].length)),
  );
  const kept = new Set(columns.keys());
  const total = () => [...kept].reduce((sum, at) => sum + (widths[at] ?? 0) + 2, -2);
  const dispensable = [...columns.keys()]
    .filter((at) => columns[at]?.dispensable !== undefined)
    .sort((a, b) => (columns[b]?.dispensable ?? 0) - (columns[a]?.dispensable ?? 0));
  for (const at of dispensable) if (total() > width) kept.delete(at);
  const first = Math.max(1, (widths[0] ?? 0) - Math.max(0, total() - width));
  return {
    columns: columns.filter((_, at) => kept.has(at)),
    rows: rows.map((row) =>
      row
        .filter((_, at) => kept.has(at))
        .map((cell, at) => (at === 0 ? truncated(cell, first) : cell)),
    ),
  };
}
