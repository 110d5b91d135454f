/**
 * `npm run bench`: measures Pcow beside its peers, and writes docs/benchmarks.md from what it
 * found.
 *
 *   npm run bench                          everything; the figures of docs/benchmarks.md
 *   npm run bench -- --short               everything in a few minutes, into build/bench
 *   npm run bench -- --short fuse space    some comparisons alone
 *   npm run bench -- --again               the same once more: the document then says whether both runs agree
 *   npm run bench -- --document            only writes docs/benchmarks.md again, from the figures that are there
 */
import path from 'node:path';
import { parseArgs } from 'node:util';

import { comparisons } from './bench/comparisons.js';
import { AGAIN, writeDocument } from './bench/document.js';
import { describeMachine } from './bench/machine.js';
import { keep, Ledger } from './bench/results.js';
import { Stand } from './bench/stand.js';
import { repository } from './guest/files.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    short: { type: 'boolean', default: false },
    again: { type: 'boolean', default: false },
    document: { type: 'boolean', default: false },
  },
});
const unknown = positionals.find((name) => !comparisons.some((each) => each.name === name));
if (unknown !== undefined) {
  process.stderr.write(
    `no comparison is called ${unknown}; there are: ${comparisons.map(({ name }) => name).join(' ')}\n`,
  );
  process.exit(2);
}
const output = path.join(repository, values.short ? 'build/bench' : 'docs');
const kept = path.join(output, values.short ? 'results' : 'benchmarks');
const wanted = comparisons.filter(
  ({ name }) => positionals.length === 0 || positionals.includes(name),
);

for (const comparison of values.document ? [] : wanted) {
  const stand = await Stand.open(comparison.medium);
  // The terminal and npm both pass an interruption on: further ones during the handling of the
  // first change nothing.
  const interrupted = (): void => void stand.close().finally(() => process.exit(130));
  process.on('SIGINT', interrupted).on('SIGTERM', interrupted);
  try {
    const began = Date.now();
    const machine = describeMachine(stand.scratch, repository);
    const record = new Ledger();
    await comparison.run({ stand, record, short: values.short, say });
    await keep(values.again ? path.join(kept, AGAIN) : kept, {
      comparison: comparison.name,
      date: new Date().toISOString().slice(0, 16),
      short: values.short,
      seconds: Math.round((Date.now() - began) / 1000),
      machine,
      measurements: record.measurements,
    });
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
    await stand.close();
  }
}
say(`written: ${await writeDocument(output, kept)}`);

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}
