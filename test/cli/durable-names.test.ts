/**
 * When a command has succeeded, its names are on the disk: after a power cut the new files exist
 * and are complete, and the deleted ones are gone. A preloaded library records created and removed
 * names, and the syncs.
 */
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { pcowProgram } from '../helpers/mounted.js';
import { preloadable } from '../helpers/program.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);

interface Stage {
  directory: string;
  /** Runs the command line, and returns what happened to names, in order. */
  pcow: (line: string) => Promise<string[][]>;
}

async function stage(t: ExecutionContext): Promise<Stage> {
  const directory = await scratchDirectory(t);
  const scratch = await scratchDirectory(t);
  const library = await preloadable('recorded-names', scratch);
  const record = path.join(scratch, 'record');
  const pcow = async (line: string) => {
    await writeFile(record, '');
    const env = { ...process.env, LD_PRELOAD: library, RECORD: record };
    await run(
      'bash',
      ['-c', `set -o pipefail; pcow() { "${process.execPath}" "${pcowProgram}" "$@"; }; ${line}`],
      {
        cwd: directory,
        env,
      },
    );
    const lines = (await readFile(record, 'utf8')).split('\n').filter((it) => it !== '');
    return lines.map((it) => it.trimEnd().split(' ')).filter(([, ...files]) => files.some(isHere));
  };
  const isHere = (file: string) => file === directory || file.startsWith(`${directory}/`);
  return { directory, pcow };
}

/** Changes of names that are not on the disk yet. */
function notDurable(events: string[][]): string[] {
  // open files, by the directory that would have to be synced
  const names = new Map<string, string>();
  const contents = new Set<string>(); // names of files that were never synced
  const synced = new Set<string>();
  for (const [word = '', first = '', second = ''] of events) {
    if (word === 'sync') {
      synced.add(first);
      names.delete(first);
      continue;
    }
    names.set(path.dirname(word === 'unlink' ? first : second), `${word} ${first} ${second}`);
    if (word !== 'unlink' && path.basename(first).includes('draft') && !synced.has(first))
      contents.add(second);
  }
  return [...names.values(), ...[...contents].map((file) => `the content of ${file}`)];
}

/** A draft that is missing after a power cut, or still exists, does no harm. */
function besideDrafts(events: string[][]): string[][] {
  return events.filter(
    ([word, first = '']) => word !== 'unlink' || !/pcow-draft$|\.pcow-\d/.test(first),
  );
}

const LINES = [
  'pcow create base 1M',
  'pcow create --force base 1M',
  'pcow clone base child',
  'pcow rename base web',
  'pcow rename child leaf',
  'pcow export leaf out',
  'pcow export leaf out --force',
  'pcow import out copy',
  'pcow convert leaf raw -O raw',
  'pcow convert -f raw raw made',
  'pcow convert -f raw raw made --force',
  'pcow snapshot made@s; pcow send made@s | pcow receive sent',
  'pcow rm leaf web',
];

test.serial('names are on the disk when a command returns', async (t) => {
  const { pcow } = await stage(t);
  for (const line of LINES) {
    const events = besideDrafts(await pcow(line));
    t.true(
      events.some(([word]) => word !== 'sync'),
      `${line}: no name has come or gone`,
    );
    t.deepEqual(notDurable(events), [], line);
  }
});

test.serial(
  'a rename: the new name is on the disk before the images that stand on it are updated; the old name is removed after that',
  async (t) => {
    const { directory, pcow } = await stage(t);
    const at = (name: string) => path.join(directory, name);
    await pcow(
      'pcow create base 1M && pcow snapshot base@s && pcow clone base@s one && pcow clone base@s two',
    );
    const events = await pcow('pcow rename base web');
    const place = (word: string, first: string, from = 0) =>
      events.findIndex((event, i) => i >= from && event[0] === word && event[1] === first);
    const linked = place('link', at('base.pcow'));
    const named = place('sync', directory, linked);
    const unlinked = place('unlink', at('base.pcow'));
    t.true(linked >= 0 && linked < named && named < unlinked, JSON.stringify(events));
    for (const child of ['one.pcow', 'two.pcow']) {
      const told = events
        .slice(named, unlinked)
        .some(([word, first]) => word === 'sync' && first === at(child));
      t.true(told, `${child} is told durably in between: ${JSON.stringify(events)}`);
    }
    t.true(place('sync', directory, unlinked) > unlinked, JSON.stringify(events));
  },
);

test.serial(
  'a repair: data that is removed from an image is on the disk in a named file before',
  async (t) => {
    const { directory, pcow } = await stage(t);
    await pcow(
      'pcow create vm 1M && echo lost > raw && truncate -s 1M raw && pcow convert -f raw raw vm --force',
    );
    // A block to which nothing refers: the first entry of the table is cleared.
    const image = await readFile(path.join(directory, 'vm.pcow'));
    const directoryAt = Number(image.readBigUInt64LE(4096 + 80) || image.readBigUInt64LE(80));
    const table = directoryAt + 65536;
    image.fill(0, table, table + 8);
    await writeFile(path.join(directory, 'vm.pcow'), image);
    const events = await pcow('pcow check vm --repair || [ $? = 15 ]');
    const lost = path.join(directory, 'vm.pcow.lost');
    t.true(
      events.some(([word, first]) => word === 'sync' && first === lost),
      JSON.stringify(events),
    );
    const kept = events.findIndex(([word, first]) => word === 'sync' && first === lost);
    const named = events.findIndex(
      ([word, first], i) => i > kept && word === 'sync' && first === directory,
    );
    t.true(named > kept, JSON.stringify(events));
  },
);
