/** The results of a comparison, and their format. */
import { readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

import type { Machine } from './machine.js';

export interface Measurement {
  table: string;
  /** What was measured, in the columns of the table. */
  row: string[];
  system: string;
  unit: string;
  better: 'more' | 'less';
  /**
   * One for each round, in the order of the rounds: the same index in another system's list is the
   * same round.
   */
  values: number[];
  /** [microseconds, how often], all rounds together. */
  histogram?: [number, number][];
}

export interface Results {
  comparison: string;
  date: string;
  /** Whether it was the short form. */
  short: boolean;
  /** The duration of the whole comparison in seconds. */
  seconds: number;
  machine: Machine;
  measurements: Measurement[];
}

export interface Spread {
  median: number;
  low: number;
  high: number;
}

export function spreadOf(values: number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const at = (i: number) => sorted[i] ?? NaN;
  const median =
    sorted.length % 2 === 1 ? at(Math.floor(middle)) : (at(middle - 1) + at(middle)) / 2;
  return { median, low: at(0), high: at(sorted.length - 1) };
}

/** Ratios, one for each round; larger is better for `mine`. */
export function advantage(mine: Measurement, other: Measurement): Spread {
  return spreadOf(
    mine.values.map((value, round) => {
      const theirs = other.values[round] ?? NaN;
      return mine.better === 'more' ? value / theirs : theirs / value;
    }),
  );
}

export class Ledger {
  readonly measurements: Measurement[] = [];

  add(
    of: Omit<Measurement, 'values' | 'histogram'>,
    value: number,
    histogram?: [number, number][],
  ): void {
    let measurement = find(this.measurements, of.table, of.row, of.system);
    if (!measurement) {
      measurement = { ...of, values: [] };
      this.measurements.push(measurement);
    }
    measurement.values.push(value);
    if (histogram) measurement.histogram = merged(measurement.histogram ?? [], histogram);
  }
}

export function find(
  all: Measurement[],
  table: string,
  row: string[],
  system: string,
): Measurement | undefined {
  return all.find(
    (each) =>
      each.table === table && each.system === system && each.row.join('\n') === row.join('\n'),
  );
}

function merged(a: [number, number][], b: [number, number][]): [number, number][] {
  const counts = new Map(a);
  for (const [at, count] of b) counts.set(at, (counts.get(at) ?? 0) + count);
  return [...counts].sort(([x], [y]) => x - y);
}

export async function keep(directory: string, results: Results): Promise<void> {
  await mkdir(directory, { recursive: true });
  const { measurements, ...rest } = results;
  // One line for each measurement, so that a changed measurement is a changed line.
  const lines = measurements.map((each) => `    ${JSON.stringify(each)}`).join(',\n');
  const head = JSON.stringify(rest, null, 2).slice(0, -2);
  await writeFile(
    path.join(directory, `${results.comparison}.json`),
    `${head},\n  "measurements": [\n${lines}\n  ]\n}\n`,
  );
}

export function kept(directory: string, comparison: string): Results | null {
  try {
    return JSON.parse(readFileSync(path.join(directory, `${comparison}.json`), 'utf8')) as Results;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
