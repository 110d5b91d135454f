/** The targets, and the results. */
import { short } from './plot.js';
import { advantage, find, spreadOf, type Measurement, type Results } from './results.js';

type All = Map<string, Results>;

interface Found {
  text: string;
  met: boolean;
}

interface Target {
  what: string;
  against: string;
  /** Where the files are, and what counts as durable, on both sides of the ratio. */
  medium: string;
  target: string;
  /** null: not measured. */
  found: (all: All) => Found | null;
}

const NOT_FLUSHED = 'disk, page cache; nothing is flushed';
const ON_DISK = 'disk; durable: on the disk (fdatasync)';
const IN_MEMORY = 'memory (tmpfs); durable: in memory';

const TARGETS: Target[] = [
  {
    what: 'loads and stores once touched, slowest of four kinds',
    against: 'a raw file, mapped',
    medium: NOT_FLUSHED,
    target: 'at least 0.98',
    found: (all) => least(ratios(of(all, 'mapping', 'memory'), 'pcow', 'raw'), 0.98),
  },
  {
    what: '64-byte store made durable in the guest, store and flush instruction',
    against: 'write and fdatasync on virtio-blk, qcow2',
    medium: IN_MEMORY,
    target: 'at least 50',
    found: (all) =>
      least(
        ratios(durable(all, 'guest-memory', 'flush instruction'), 'pcow', 'qcow2 virtio-blk'),
        50,
      ),
  },
  {
    what: 'the same',
    against: 'the same on a raw file as virtio-pmem',
    medium: IN_MEMORY,
    target: 'at least 0.98',
    found: (all) =>
      least(ratios(durable(all, 'guest-memory', 'flush instruction'), 'pcow', 'raw pmem'), 0.98),
  },
  {
    what: '64-byte store made durable in the guest, msync',
    against: 'write and fdatasync on virtio-blk, qcow2',
    medium: ON_DISK,
    target: 'at least 1.0',
    found: (all) => least(ratios(durable(all, 'guest', 'msync'), 'pcow', 'qcow2 virtio-blk'), 1),
  },
  {
    what: '64-byte store made durable in the guest, msync',
    against: 'virtio-pmem on a raw file',
    medium: ON_DISK,
    target: 'at least 1.0',
    found: (all) => least(ratios(durable(all, 'guest', 'msync'), 'pcow', 'raw pmem'), 1),
  },
  {
    what: 'Redis, append-only file, fsync always',
    against: 'virtio-blk on qcow2',
    medium: ON_DISK,
    target: 'more than 1.0',
    found: (all) => least(ratios(redis(all), 'pcow', 'qcow2 virtio-blk'), 1),
  },
  {
    what: 'Redis, append-only file, fsync always',
    against: 'virtio-pmem on a raw file',
    medium: ON_DISK,
    target: 'at least 0.95',
    found: (all) => least(ratios(redis(all), 'pcow', 'raw pmem'), 0.95),
  },
  {
    what: 'SQLite, small transactions, synchronous=FULL',
    against: 'virtio-blk on qcow2',
    medium: ON_DISK,
    target: 'at least 1.0',
    found: (all) => least(ratios(of(all, 'guest', 'sqlite'), 'pcow', 'qcow2 virtio-blk'), 1),
  },
  {
    what: 'boot of a Debian on a clone, userspace until multi-user',
    against: 'virtio-blk on a qcow2 overlay',
    medium: NOT_FLUSHED,
    target: 'at most 1.0 times',
    found: (all) =>
      most(
        ratios(
          rows(of(all, 'boot', 'boot'), 'userspace until multi-user'),
          'qcow2 virtio-blk',
          'pcow',
        ),
        1,
        '×',
      ),
  },
  {
    what: 'expansion, sequential first touch',
    against: 'a raw sparse file',
    medium: NOT_FLUSHED,
    target: 'at least 1.0',
    found: (all) =>
      least(
        ratios(rows(of(all, 'mapping', 'expansion'), 'sequential, whole pages'), 'pcow', 'raw'),
        1,
      ),
  },
  {
    what: 'copy-on-write fault, p50, single byte',
    against: 'userfaultfd round trip + 4 KiB copy + one mapping call',
    medium: NOT_FLUSHED,
    target: 'at most 1.3 times',
    found: (all) => {
      const p50 = rows(of(all, 'mapping', 'copies p50'), 'one byte a block, over a base');
      return most(ratios(p50, 'floor', 'pcow'), 1.3, '×');
    },
  },
  {
    what: 'stall of a writer by a live snapshot, longest of all cuts, most memory mapped',
    against: 'unmapping as much at once',
    medium: 'disk',
    target: 'at most 5 ms',
    found: (all) => stall(all, (row) => row[0] === 'mapped memory'),
  },
  {
    what: 'the same, images of 1 GiB to 16 TiB',
    against: '',
    medium: 'disk',
    target: 'at most 5 ms',
    found: (all) => stall(all, (row) => row[0] === 'size of the image'),
  },
  {
    what: 'first 10 seconds after a live snapshot, work of a mixed workload',
    against: 'the same without a snapshot',
    medium: NOT_FLUSHED,
    target: 'at least 0.8',
    found: (all) => least(ratios(of(all, 'snapshots', 'work'), 'after', 'before'), 0.8),
  },
  {
    what: 'FUSE reads and writes, each size and pattern',
    against: 'qemu-storage-daemon’s FUSE export of a qcow2',
    medium: NOT_FLUSHED,
    target: 'at least 1.0 in every row, 2.0 in most',
    found: (all) => {
      const found = ['direct', 'cached'].flatMap((table) =>
        ratios(of(all, 'fuse', table), 'pcow', 'qemu-storage-daemon'),
      );
      if (found.length === 0) return null;
      const reached = (limit: number) => found.filter(({ ratio }) => ratio >= limit).length;
      const worst = lowest(found);
      return {
        text: `at least 1.0 in ${reached(1)} of ${found.length} rows, 2.0 in ${reached(2)}; lowest ${short(worst.ratio)} (${worst.row})`,
        met: reached(1) === found.length && reached(2) > found.length / 2,
      };
    },
  },
  {
    what: '`stat` and `open` of a flat file',
    against: 'qemu-storage-daemon’s FUSE export of a qcow2',
    medium: NOT_FLUSHED,
    target: 'at least 1.0',
    found: (all) => least(ratios(of(all, 'fuse', 'metadata'), 'pcow', 'qemu-storage-daemon'), 1),
  },
  {
    what: '`ls -l`, and an open of each file, in a mount with 1,000 images: time for each',
    against: 'a mount with 10 images',
    medium: NOT_FLUSHED,
    target: 'at most 1.3 times',
    found: (all) => most(ratios(of(all, 'fuse', 'listing'), '10 images', '1000 images'), 1.3, '×'),
  },
  {
    what: 'space, random 4 KiB over a base, written through the flat file',
    against: 'bytes written',
    medium: 'disk',
    target: 'at most 1.15 times',
    found: (all) => amplification(all, 'pcow'),
  },
  {
    what: 'the same, stored through a monitored mapping',
    against: 'bytes written',
    medium: 'disk',
    target: 'at most 1.15 times',
    found: (all) => amplification(all, 'pcow, monitored'),
  },
  {
    what: 'length of the file after 200 snapshots and 190 deletions, 32 random pages written after each',
    against: 'the image and the data of its snapshots',
    medium: 'disk',
    target: 'at most 1.25 times',
    found: (all) =>
      most(
        rows(of(all, 'space', 'length'), 'length of the file').map((each) => ({
          row: each.row.join(),
          ratio: spreadOf(each.values).median,
        })),
        1.25,
        '×',
      ),
  },
  {
    what: 'opening a 1 TiB image with 100 snapshots, half full',
    against: '',
    medium: 'disk',
    target: 'at most 100 ms',
    found: (all) => milliseconds(all, 'opening to write'),
  },
  {
    what: 'attaching to it',
    against: '',
    medium: 'disk',
    target: 'at most 100 ms',
    found: (all) => milliseconds(all, 'attaching'),
  },
  {
    what: 'push of everything to a registry, and pull, slowest of four',
    against: '`skopeo copy` of the same bytes as a plain layer',
    medium: 'disk; a registry on the same machine',
    target: 'at least 1.0',
    found: (all) => least(ratios(of(all, 'registry', 'everything'), 'pcow', 'skopeo, gzip'), 1),
  },
  {
    what: 'the same',
    against: 'the same, and skopeo does not compress',
    medium: 'disk; a registry on the same machine',
    target: 'at least 1.0',
    found: (all) => least(ratios(of(all, 'registry', 'everything'), 'pcow', 'skopeo'), 1),
  },
  {
    what: 'push of the same once more: MiB moved',
    against: '',
    medium: 'link',
    target: 'only the manifest',
    found: (all) => moved(all, (what) => what.includes('once more'), 0.1),
  },
  {
    what: 'push and pull of an update of 100 MiB: MiB moved',
    against: '',
    medium: 'link',
    target: 'at most 110',
    found: (all) => moved(all, (what) => what.includes(' of 100 MiB of it'), 110),
  },
  {
    what: "from `create --base` on a registry to the guest's first process",
    against: 'pull, then boot',
    medium: 'disk; a registry behind 1 Gbit/s and 20 ms',
    target: 'at least 10 times sooner',
    found: (all) => least(ratios(firstProcess(all), 'lazy', 'pull, then boot'), 10),
  },
  {
    what: 'the same',
    against: 'a base on the local disk',
    medium: 'disk; a registry behind 1 Gbit/s and 20 ms',
    target: 'at most 3 s more',
    found: (all) => later(all, 'lazy', 3),
  },
  {
    what: 'the same, with a trace',
    against: 'a base on the local disk',
    medium: 'disk; a registry behind 1 Gbit/s and 20 ms',
    target: 'at most 1 s more',
    found: (all) => later(all, 'lazy, with a trace', 1),
  },
  {
    what: 'bytes that a boot from a lazy image moves',
    against: 'bytes that such a boot reads from a virtio-blk disk',
    medium: 'link',
    target: 'at most 1.5 times',
    found: (all) =>
      most(ratios(of(all, 'lazy', 'bytes'), 'read from virtio-blk', 'lazy'), 1.5, '×'),
  },
];

export function targetTable(all: All): string {
  const lines = [
    '| what | against | medium | target | found | |',
    '| --- | --- | --- | --- | --- | --- |',
    ...TARGETS.map(({ what, against, medium, target, found }) => {
      const outcome = found(all);
      const word = outcome === null ? '' : outcome.met ? 'met' : '**missed**';
      return `| ${what} | ${against} | ${medium} | ${target} | ${outcome?.text ?? '(not measured)'} | ${word} |`;
    }),
  ];
  return lines.join('\n');
}

const of = (all: All, comparison: string, table: string): Measurement[] =>
  (all.get(comparison)?.measurements ?? []).filter((each) => each.table === table);

const rows = (measurements: Measurement[], first: string): Measurement[] =>
  measurements.filter((each) => each.row[0] === first);

/** Writes of 64 bytes; `how` they are made durable. */
const durable = (all: All, comparison: string, how: string): Measurement[] =>
  rows(of(all, comparison, 'durable'), `write, ${how}`).filter(
    (each) => each.row[1] === '64 bytes',
  );

const redis = (all: All): Measurement[] =>
  rows(of(all, 'guest', 'redis'), 'SET, appendfsync always');

const firstProcess = (all: All): Measurement[] =>
  rows(of(all, 'lazy', 'start'), 'until the first process of the root');

/** Seconds until the first process, more than with a local base. */
function later(all: All, system: string, limit: number): Found | null {
  const found = firstProcess(all);
  const mine = found.find((each) => each.system === system);
  const local = found.find((each) => each.system === 'local base');
  if (!mine || !local) return null;
  const more = mine.values.map((value, round) => value - (local.values[round] ?? NaN));
  const { median } = spreadOf(more);
  return { text: `${short(median)} s`, met: median <= limit };
}

interface Ratio {
  row: string;
  ratio: number;
}

function ratios(measurements: Measurement[], system: string, peer: string): Ratio[] {
  return measurements
    .filter((each) => each.system === system)
    .flatMap((mine) => {
      const other = find(measurements, mine.table, mine.row, peer);
      return other ? [{ row: mine.row.join(', '), ratio: advantage(mine, other).median }] : [];
    });
}

const lowest = (all: Ratio[]): Ratio => all.reduce((a, b) => (b.ratio < a.ratio ? b : a));

function least(all: Ratio[], limit: number): Found | null {
  if (all.length === 0) return null;
  const worst = lowest(all);
  return { text: `${short(worst.ratio)} (${worst.row})`, met: worst.ratio >= limit };
}

function most(all: Ratio[], limit: number, unit: string): Found | null {
  if (all.length === 0) return null;
  const worst = all.reduce((a, b) => (b.ratio > a.ratio ? b : a));
  return { text: `${short(worst.ratio)}${unit} (${worst.row})`, met: worst.ratio <= limit };
}

function stall(all: All, wanted: (row: string[]) => boolean): Found | null {
  const found = of(all, 'snapshots', 'stall').filter((each) => wanted(each.row));
  const worst = found.map((each) => ({
    row: each.row.join(': '),
    ratio: spreadOf(each.values).high,
  }));
  const medians = found.map((each) => spreadOf(each.values).median);
  const outcome = most(worst, 5, ' ms');
  return (
    outcome && {
      ...outcome,
      text: `${outcome.text}; medians ${short(Math.min(...medians))}–${short(Math.max(...medians))} ms`,
    }
  );
}

function amplification(all: All, system: string): Found | null {
  const found = of(all, 'space', 'amplification').filter((each) => each.system === system);
  return most(
    found.map((each) => ({
      row: `${each.row.join()} pages a block`,
      ratio: spreadOf(each.values).median,
    })),
    1.15,
    '×',
  );
}

function moved(all: All, wanted: (what: string) => boolean, limit: number): Found | null {
  const found = of(all, 'registry', 'moved').filter((each) => wanted(each.row[0] ?? ''));
  return most(
    found.map((each) => ({ row: each.row[0] ?? '', ratio: spreadOf(each.values).median })),
    limit,
    ' MiB',
  );
}

function milliseconds(all: All, what: string): Found | null {
  const found = rows(of(all, 'snapshots', 'opening'), what);
  return most(
    found.map((each) => ({ row: each.row[1] ?? '', ratio: spreadOf(each.values).median })),
    100,
    ' ms',
  );
}
