/**
 * Many processes that read the same base, each through a mapping of its own clone: how much memory
 * they take together, and how fast they read.
 */
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { rotated, type Bench, type Comparison } from './comparison.js';
import { type Conversation, freshFile, lastProcessor, type Stand } from './stand.js';

const MiB = 2 ** 20;
const SHARING = 'pcow, clean store';
const PLAIN = 'pcow, plain';
const COPIES = 'pcow, private copies';
/** What other monitors of machines do, which do not trap stores: nothing reaches the file. */
const PRIVATE = 'raw, mapped privately';
const SYSTEMS = [SHARING, COPIES, PLAIN, PRIVATE] as const;
type System = (typeof SYSTEMS)[number];

export const density: Comparison = { name: 'density', medium: 'disk', run, plots: () => ({}) };

async function run({ stand, record, short, say }: Bench): Promise<void> {
  const processes = short ? 8 : 20;
  const length = (short ? 256 : 512) * MiB;
  const rounds = short ? 3 : 5;
  const rows = [String(processes), `${length / MiB} MiB`];
  for (let round = 0; round < rounds; ++round) {
    say(`density: round ${round + 1} of ${rounds}`);
    for (const system of rotated(SYSTEMS, round)) {
      const { files, end } = await prepared(stand, system, processes, length);
      const readers: Conversation[] = [];
      const speeds: number[] = [];
      for (const file of files) {
        const reader = await stand.conversation(...reading(stand, system, file));
        readers.push(reader);
        const { seconds } = await reader.ask<{ seconds: number }>();
        speeds.push(length / MiB / seconds);
      }
      let kib = 0;
      for (const reader of readers) kib += (await reader.ask<{ kib: number }>()).kib;
      for (const reader of readers) await reader.end();
      await end();
      const [first = NaN, ...later] = speeds;
      const mean = later.reduce((sum, speed) => sum + speed, 0) / later.length;
      const add = (
        table: string,
        row: string[],
        unit: string,
        better: 'more' | 'less',
        value: number,
      ): void => {
        record.add({ table, row, system, unit, better }, value);
      };
      add('memory', rows, 'MiB', 'less', kib / 1024);
      add('reads', ['the first process'], 'MiB/s', 'more', first);
      add('reads', ['those after it'], 'MiB/s', 'more', mean);
    }
  }
}

function reading(stand: Stand, system: System, file: string): string[] {
  const program = stand.program('reader');
  if (system === PRIVATE) return [program, file, 'private'];
  return [...(system === PLAIN ? [] : stand.monitored()), program, file, 'shared'];
}

/** A file for each process. end() removes them. */
async function prepared(
  stand: Stand,
  system: System,
  processes: number,
  length: number,
): Promise<{ files: string[]; end: () => Promise<void> }> {
  if (system === PRIVATE) {
    const file = stand.fresh('base');
    await freshFile(file, length);
    await stand.command('dd', 'if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${length / MiB}`);
    return {
      files: Array<string>(processes).fill(file),
      end: async () => void (await stand.command('rm', file)),
    };
  }
  const directory = stand.fresh('images');
  const options = system === SHARING ? ['--clean-store', String(2 * length)] : [];
  const mount = await stand.mount(`0-${lastProcessor}`, directory, ...options);
  const base = path.join(directory, 'base.pcow');
  await Image.create(base, { size: length });
  await stand.command(
    'dd',
    'if=/dev/urandom',
    `of=${path.join(mount.mountpoint, 'base')}`,
    'bs=1M',
    `count=${length / MiB}`,
    'conv=fsync,notrunc',
  );
  await stand.command('sh', '-c', `echo base > ${mount.mountpoint}/.pcow/base/snapshot`);
  const files: string[] = [];
  for (let number = 1; number <= processes; ++number) {
    await Image.create(path.join(directory, `vm${number}.pcow`), {
      base: { path: base, snapshot: 'base' },
    });
    files.push(path.join(mount.mountpoint, `vm${number}`));
  }
  return { files, end: () => mount.end() };
}
