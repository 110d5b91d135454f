/**
 * Writes docs/start-times.md: the processor time of short commands, as multiples of the time that
 * Node itself takes to start. Each round runs all of them in turn, and the medians of the rounds
 * are compared, so that a busy machine slows all of them.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../', import.meta.url));
const pcow = path.join(root, 'dist/cli/pcow.cjs');
const rounds = Number(process.argv[2] ?? 20);

const HEAD = `<!-- Written by \`npm run start-times\`. -->

# How soon commands start

This table shows the processor time of short commands, and its ratio to the time that Node ${process.version} itself takes to start.
The figures are medians of ${rounds} rounds; each round runs all commands one after another.

| command | CPU seconds | \`node -e 0\` = 1 |
| --- | --- | --- |
`;

/** Seconds of processor time, of the user and of the system. */
function timeOf(words: readonly string[]): number {
  const measure = 'TIMEFORMAT="%U %S"; { time "$@" > /dev/null; } 2>&1';
  const times = execFileSync('bash', ['-c', measure, 'bash', process.execPath, ...words], {
    encoding: 'utf8',
  });
  return times
    .trim()
    .split(' ')
    .reduce((sum, seconds) => sum + Number(seconds), 0);
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

const scratch = mkdtempSync(path.join(os.tmpdir(), 'pcow-start-times-'));
try {
  const image = path.join(scratch, 'base.pcow');
  execFileSync(process.execPath, [pcow, 'create', image, '1G']);
  const commands: [string, (round: number) => string[]][] = [
    ['node -e 0', () => ['-e', '0']],
    ['pcow --version', () => [pcow, '--version']],
    ['pcow list DIR', () => [pcow, 'list', scratch]],
    ['pcow info IMAGE', () => [pcow, 'info', image]],
    [
      'pcow clone BASE NEW',
      (round) => [pcow, 'clone', image, path.join(scratch, `clone-${round}`)],
    ],
  ];
  const times = commands.map(() => [] as number[]);
  for (let round = 0; round < rounds; round += 1) {
    for (const [index, [, words]] of commands.entries()) times[index]?.push(timeOf(words(round)));
  }
  const node = median(times[0] ?? []);
  const rows = commands.map(([name], index) => {
    const seconds = median(times[index] ?? []);
    return `| \`${name}\` | ${seconds.toFixed(2)} | ${(seconds / node).toFixed(2)} |`;
  });
  writeFileSync(path.join(root, 'docs/start-times.md'), `${HEAD}${rows.join('\n')}\n`);
} finally {
  rmSync(scratch, { recursive: true });
}
