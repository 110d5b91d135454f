/**
 * docs/benchmarks.md from its template and the figures that were kept. In the template, {{…}}
 * stands for what was measured:
 *
 *   {{machine}}                                   what it was measured on
 *   {{targets}}                                   each target, and what was found
 *   {{agreement}}                                 whether a second run says the same
 *   {{table|COMPARISON|TABLE|SYSTEM|PEER|…}}      a table; for each peer a column with SYSTEM's advantage over it
 *   {{plot|COMPARISON|NAME}}                      a picture
 *   {{value|COMPARISON|TABLE|ROW|SYSTEM}}         a median with its unit; the parts of ROW are apart by " / "
 *   {{ratio|COMPARISON|TABLE|ROW|SYSTEM|PEER}}    the median of the advantages of all rounds
 */
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';

import { repository } from '../guest/files.js';
import { agreement } from './agreement.js';
import { comparisons } from './comparisons.js';
import { short } from './plot.js';
import {
  advantage,
  find,
  kept,
  spreadOf,
  type Measurement,
  type Results,
  type Spread,
} from './results.js';
import { targetTable } from './targets.js';

/** The directory with the results of a second run, in that of the results. */
export const AGAIN = 'again';
/**
 * The directory with the results of the short form, in that of the full form, if they are kept as
 * well: two runs of the short form must agree.
 */
const SHORT = 'short';

export async function writeDocument(output: string, directory: string): Promise<string> {
  const template = await readFile(path.join(repository, 'scripts/bench/template.md'), 'utf8');
  const all = everything(directory);
  for (const { name, plots } of comparisons) {
    const results = all.get(name);
    if (!results) continue;
    for (const [plot, svg] of Object.entries(plots(results)))
      await writeFile(path.join(directory, `${name}-${plot}.svg`), svg);
  }
  const pictures = path.basename(directory);
  const again = (place: string): Map<string, Results> => everything(path.join(place, AGAIN));
  const twice =
    [path.join(directory, SHORT), directory].find((place) => again(place).size > 0) ?? directory;
  const text = template.replace(/\{\{([^}]+)\}\}/g, (_, words: string) =>
    words === 'agreement'
      ? agreement(everything(twice), again(twice))
      : replacement(words.split('|'), all, pictures),
  );
  const file = path.join(output, 'benchmarks.md');
  await writeFile(file, text);
  return path.relative(repository, file);
}

function everything(directory: string): Map<string, Results> {
  const found = comparisons.flatMap(({ name }): [string, Results][] => {
    const results = kept(directory, name);
    return results ? [[name, results]] : [];
  });
  return new Map(found);
}

function replacement(
  [kind, name = '', ...rest]: string[],
  all: Map<string, Results>,
  pictures: string,
): string {
  if (kind === 'machine') return machines([...all.values()]);
  if (kind === 'targets') return targetTable(all);
  const results = all.get(name);
  if (!results) return '(not measured)';
  const [table = '', row = '', system = '', peer = ''] = rest;
  switch (kind) {
    case 'table':
      return tableOf(results.measurements, table, rest.slice(1));
    case 'plot':
      return `![${table}](${pictures}/${name}-${table}.svg)`;
    case 'value': {
      const found = find(results.measurements, table, row.split(' / '), system);
      return found ? withUnit(spreadOf(found.values).median, found.unit) : '(not measured)';
    }
    case 'ratio': {
      const mine = find(results.measurements, table, row.split(' / '), system);
      const other = find(results.measurements, table, row.split(' / '), peer);
      return mine && other ? `${short(advantage(mine, other).median)}×` : '(not measured)';
    }
    default:
      throw new Error(`the template has an unknown {{${kind ?? ''}}}`);
  }
}

function tableOf(
  measurements: Measurement[],
  table: string,
  [system = '', ...peers]: string[],
): string {
  const of = measurements.filter((each) => each.table === table);
  const systems = [...new Set(of.map((each) => each.system))].sort(
    (a, b) => order(a, system) - order(b, system),
  );
  const rows = [...new Map(of.map((each) => [each.row.join('\n'), each.row])).values()];
  const first = of[0];
  if (!first) return '(not measured)';
  const head = [
    ...first.row.map(() => ''),
    ...systems.map((name) => `${name}, ${first.unit}`),
    ...peers.map((name) => `against ${name}`),
  ];
  const lines = [head, head.map((_, i) => (i < first.row.length ? '---' : '---:'))];
  for (const row of rows) {
    const cells = systems.map((name) => {
      const found = find(of, table, row, name);
      return found ? withSpread(spreadOf(found.values)) : '';
    });
    const mine = find(of, table, row, system);
    const ratios = peers.map((name) => {
      const other = find(of, table, row, name);
      return mine && other ? `**${short(advantage(mine, other).median)}×**` : '';
    });
    lines.push([...row, ...cells, ...ratios]);
  }
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

const order = (name: string, first: string): number =>
  name === first ? 0 : name.startsWith('pcow') ? 1 : 2;

function withSpread({ median, low, high }: Spread): string {
  return low === high ? short(median) : `${short(median)} (${short(low)}–${short(high)})`;
}

export function withUnit(value: number, unit: string): string {
  return unit === '×' ? `${short(value)}×` : `${short(value)} ${unit}`;
}

/** Each machine, with the comparisons that were measured on it, the newest machine first. */
function machines(all: Results[]): string {
  const newestFirst = all.toSorted((a, b) => b.date.localeCompare(a.date));
  const groups = new Map<string, Results[]>();
  for (const results of newestFirst) {
    const { processor, processors, kernel } = results.machine;
    const key = JSON.stringify([processor, processors, kernel]);
    groups.set(key, [...(groups.get(key) ?? []), results]);
  }
  if (groups.size === 0) return '(nothing measured)';
  return [...groups.values()].map(machineWith).join('\n\n');
}

function machineWith(comparisons: Results[]): string {
  const machine = comparisons[0]?.machine;
  if (!machine) return '';
  const lines = [
    [
      'processors',
      `${machine.processors} × ${machine.processor}${machine.hypervisor === 'yes' ? ', itself virtual' : ''}`,
    ],
    ['memory', `${short(machine.memory / 1024)} GiB`],
    ['kernel', `Linux ${machine.kernel}`],
    ['QEMU', machine.qemu],
    ['Node.js', machine.node],
  ].map(([what = '', is = '']) => `| ${what} | ${is} |`);
  const runs = comparisons.map(
    (each) =>
      `| ${each.comparison} | ${each.date} UTC, commit ${each.machine.commit} | ${each.short ? 'short form' : 'full form'}, ${each.seconds} s | ${each.machine.filesystem} | ${each.machine.load} |`,
  );
  return [
    ...['| | |', '| --- | --- |', ...lines, ''],
    '| comparison | when | how long | filesystem of the images | load average at its start |',
    ...['| --- | --- | --- | --- | ---: |', ...runs],
  ].join('\n');
}
