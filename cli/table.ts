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

/** Rows under a heading, two spaces between columns, no trailing blanks. */
export function table(columns: Column[], rows: string[][]): string {
  const grid = new Table({
    head: columns.map((column) => out.bold(column.title)),
    colAligns: columns.map((column) => column.align ?? 'left'),
    chars: NO_LINES,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  grid.push(...rows);
  return trimLines(grid.toString());
}

/** `name   value` lines, names in one column; a value of several lines stays in its column. */
export function facts(pairs: [string, string][]): string {
  const grid = new Table({
    chars: NO_LINES,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  grid.push(...pairs.map(([name, value]) => [out.dim(name), value]));
  return trimLines(grid.toString());
}

function trimLines(text: string): string {
  return text.replace(/[ \t]+$/gm, '');
}
