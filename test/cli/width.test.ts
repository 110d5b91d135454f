/** Output during long work fits the terminal, and has only characters that the locale supports. */
import test from 'ava';
import { inThisLocale } from '../../cli/output/locale.js';
import { topTable } from '../../cli/output/top-table.js';
import { progressLine, truncated } from '../../cli/output/terminal-width.js';
import type { Look } from '../../src/client/activity.js';

const WIDTHS = [20, 40, 80, 200];
const SHOWN = { rate: '123 MiB/s', left: '12:34 left' };

test('a progress bar fits, and is complete if there is room', (t) => {
  const label = 'convert /srv/images/a-name-that-is-rather-long.qcow2';
  for (const width of WIDTHS) {
    for (const progress of [0, 0.5, 1]) {
      const line = progressLine(label, progress, SHOWN, width);
      t.true([...line].length < width, `${width}: ${line}`);
      t.regex(line, new RegExp(` ${Math.floor(100 * progress)}%`), `${width}: ${line}`);
    }
  }
  t.is(
    progressLine('delete vm1@a', 0.5, SHOWN, 80),
    `delete vm1@a ${'█'.repeat(19)}${'░'.repeat(19)}  50%  123 MiB/s  12:34 left`,
  );
  t.true([...progressLine(label, 0.5, SHOWN, 200)].length > 100);
});

const monitor = {
  faults: Object.fromEntries(
    ['expansion', 'copyOnWrite', 'cleanCopy', 'sharing', 'mapping'].map((kind) => [
      kind,
      { count: 100_000, p99Us: 1000 },
    ]),
  ),
  copiedBytes: 2 ** 33,
  cleanCacheBytes: 2 ** 33,
  sharedBytes: 2 ** 33,
  ownBytes: 2 ** 33,
  mappings: 49_000,
  stalls: 3,
  stalledNow: 0,
  fetchingNow: 0,
  snapshots: 2,
};
const look = {
  mountpoint: '/mnt',
  time: new Date(1000),
  images: [
    {
      name: 'an-image-with-a-name-of-many-characters',
      state: 'ok',
      open: 1,
      snapshots: 12,
      attached: [
        { pid: 12345, command: 'qemu-system-x86_64', since: new Date(0), writable: true, monitor },
      ],
    },
    { name: 'vm2', state: 'ok', open: 0, snapshots: 0, attached: [] },
  ],
  cleanStore: { budget: 2 ** 33, bytes: 2 ** 32, shared: 2 ** 34, saved: 3 * 2 ** 32 },
} as unknown as Look;

test('the table of top fits, and keeps the important columns', (t) => {
  for (const width of WIDTHS) {
    const lines = topTable(look, null, width).split('\n');
    t.is(lines.length, 4);
    for (const line of lines) t.true([...line].length <= width, `${width}: ${line}`);
    t.regex(lines[0] ?? '', /^image +state/);
  }
  t.regex(topTable(look, null, 80), /stalls/);
  t.regex(
    topTable(look, null),
    /\nclean store: 4 GiB of at most 8 GiB, mapped as 16 GiB, which saves 12 GiB$/,
  );
  t.is(topTable({ ...look, cleanStore: null }, null).split('\n').length, 3);
  t.is(topTable(look, null, 1000), topTable(look, null));
  t.is(truncated('name', 4), 'name');
  t.is(truncated('names', 4), 'nam…');
});

test.serial('ASCII if the locale supports nothing else', (t) => {
  const before = { ...process.env };
  t.teardown(() => Object.assign(process.env, before));
  const text = '“pcow list” → vm1’s … ├─ ü';
  for (const name of ['LC_ALL', 'LC_CTYPE', 'LANG']) delete process.env[name];
  t.is(inThisLocale(text), '"pcow list" -> vm1\'s ... |- ü');
  process.env.LANG = 'de_DE.UTF-8';
  t.is(inThisLocale(text), text);
  process.env.LC_ALL = 'C';
  t.is(inThisLocale(text), '"pcow list" -> vm1\'s ... |- ü');
});
