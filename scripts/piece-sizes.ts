/**
 * Writes the table of docs/registry.md that says why a piece covers 256 KiB: how well the disk of a
 * machine compresses in pieces of several sizes and levels, what the index of the pieces adds, and
 * how long a guest would wait for one of them from a registry that is 20 ms and 1 Gbit/s away.
 *
 * Run: node dist/scripts/piece-sizes.js [DISK]; default: an ext4 filesystem with programs,
 * libraries and texts of this machine.
 */
import { execFileSync } from 'node:child_process';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { compressed, decompressed } from '../src/engine/zstd.js';

const DOCUMENT = fileURLToPath(new URL('../../docs/registry.md', import.meta.url));
const [BEGIN, END] = [
  '<!-- written by scripts/piece-sizes.ts -->',
  '<!-- end of what it writes -->',
];
const KiB = 1024;
const SIZES = [64, 128, 256, 512, 1024].map((size) => size * KiB);
const LEVELS = [1, 3, 9];
/** Bytes of one record of the index. */
const RECORD = 112;
const ZEROS = Buffer.alloc(4096);
const ROUND_TRIP = 0.02;
const BYTES_PER_SECOND = 1e9 / 8;

interface Figures {
  stored: number;
  index: number;
  /** Seconds. */
  compressing: number;
  decompressing: number;
  pieces: number;
}

async function measure(disk: string, size: number, level: number): Promise<Figures> {
  const figures: Figures = { stored: 0, index: 0, compressing: 0, decompressing: 0, pieces: 0 };
  const file = await open(disk);
  const length = (await file.stat()).size;
  for (let at = 0; at < length; at += size) {
    const bytes = Buffer.alloc(Math.min(size, length - at));
    await file.read(bytes, 0, bytes.length, at);
    const units = Array.from({ length: bytes.length / 4096 }, (_, unit) =>
      bytes.subarray(unit * 4096, (unit + 1) * 4096),
    );
    const data = Buffer.concat(units.filter((unit) => !unit.equals(ZEROS)));
    if (data.length === 0) continue;
    const start = performance.now();
    const frame = await compressed(data, level);
    const middle = performance.now();
    await decompressed(frame, data.length);
    figures.compressing += (middle - start) / 1000;
    figures.decompressing += (performance.now() - middle) / 1000;
    figures.stored += frame.length;
    figures.index += RECORD;
    figures.pieces++;
  }
  await file.close();
  return figures;
}

function ownDisk(scratch: string): string {
  const [tree, disk] = [path.join(scratch, 'tree'), path.join(scratch, 'disk')];
  execFileSync('mkdir', [tree]);
  for (const from of [
    '/etc',
    '/usr/sbin',
    '/usr/lib/git-core',
    '/usr/lib/python3.11',
    '/usr/share/perl',
  ]) {
    execFileSync('bash', ['-c', 'cp -a --parents "$0" "$1" 2> /dev/null || true', from, tree]);
  }
  execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', tree, disk, '512M']);
  return disk;
}

const scratch = await mkdtemp('/var/tmp/pcow-piece-sizes-');
try {
  const disk = process.argv[2] ?? ownDisk(scratch);
  const rows: string[] = [];
  let first = 0;
  for (const size of SIZES) {
    for (const level of size === 256 * KiB ? LEVELS : [3]) {
      const { stored, index, compressing, decompressing, pieces } = await measure(
        disk,
        size,
        level,
      );
      first ||= stored + index;
      const wait = ROUND_TRIP + stored / pieces / BYTES_PER_SECOND + decompressing / pieces;
      const cells = [
        `${size / KiB} KiB`,
        level,
        `${((100 * (stored + index)) / first).toFixed(1)} %`,
        `${((100 * index) / stored).toFixed(2)} %`,
        `${(wait * 1000).toFixed(1)} ms`,
        `${Math.round(stored / pieces / KiB)} KiB`,
        `${compressing.toFixed(1)} s`,
      ];
      rows.push(`| ${cells.join(' | ')} |`);
    }
  }
  const head = [
    'piece',
    'level',
    'stored, of the first row',
    'of it index',
    'wait for one',
    'one piece, compressed',
    'to compress all',
  ];
  const table = [`| ${head.join(' | ')} |`, `|${' --- |'.repeat(head.length)}`, ...rows].join('\n');
  const text = await readFile(DOCUMENT, 'utf8');
  const [before, after] = [
    text.slice(0, text.indexOf(BEGIN) + BEGIN.length),
    text.slice(text.indexOf(END)),
  ];
  await writeFile(DOCUMENT, `${before}\n\n${table}\n\n${after}`);
  console.log(table);
} finally {
  await rm(scratch, { recursive: true, force: true });
}
