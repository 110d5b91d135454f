/** Columns of text for people. Programs read `--json` instead. */
import Table from 'cli-table3';
import { out } from './colors.js';

const NO_LINES = {
  top: '',
  'top-mid': '',
  'top-left': '',
  'top-right': '',
  bottom: '',
  'bottom-mid': '',
  'bottom-left': '',
  'bottom-right': '',
  left: '',
  'left-mid': '',
  mid: '',
  'mid-mid': '',
  right: '',
  'right-mid': '',
  middle: '  ',
};

export interface Column {
  title: string;
  align?: 'left' | 'right';
}

/** Rows under a heading, with two spaces between columns, and without trailing spaces. */
export function table(columns: Column[], rows: string[][]): string {
  const grid = new Table({
    head: columns.map((column) => out.bold(column.title)),
    colAligns: columns.map((column) => column.align ?? 'left'),
    chars: NO_LINES,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  grid.push(...rows.map((row) => row.map(printable)));
  return trimLines(grid.toString());
}

/**
 * Lines of `name   value`, with the names in one column; a value of several lines stays in its
 * column.
 */
export function facts(pairs: [string, string][]): string {
  const grid = new Table({
    chars: NO_LINES,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  grid.push(...pairs.map(([name, value]) => [out.dim(name), value]));
  return trimLines(grid.toString());
}

/**
 * Names come from files, and a terminal may interpret their contents: a control character is shown
 * as an escape, and a row stays one line.
 */
function printable(cell: string): string {
  return cell.replace(
    // eslint-disable-next-line no-control-regex -- they are what it is about
    /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

function trimLines(text: string): string {
  return text.replace(/[ \t]+$/gm, '');
}
