import { isatty } from 'node:tty';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import type { PcowMount } from '../../src/images/mount-table.js';
import { lookAt, type Look } from '../../src/client/activity.js';
import { Failure } from '../output/errors.js';
import { PcowError } from '../../src/engine/errors.js';
import { addNotes } from '../output/help.js';
import { inThisLocale } from '../output/locale.js';
import { put, say, sayJson } from '../output/stdout.js';
import { quote } from '../../src/engine/quote.js';
import { findDirectory, whileWaiting } from '../find-image.js';
import { topTable } from '../output/top-table.js';

const REFRESH_MS = 1000;
const HOME_AND_CLEAR = '\u001b[H\u001b[J';

export function addTop(program: Command): void {
  const command = program
    .command('top')
    .summary('show what the images of a mount are doing')
    .description(
      'Shows all images of a mount, with the processes that are attached to them, and refreshes this each ' +
        'second.',
    )
    .argument('<mountpoint>', 'where it is mounted, or the image directory')
    .option('--once', 'print the table once')
    .option('--json', 'print the table once as JSON, for programs')
    .action(top);
  addNotes(command, {
    text: [
      'The table shows page faults per second by what they needed: a new block (expand), a copy of data ' +
        'from lower layers (cow), a clean copy that is only read (clean), memory that other guests share ' +
        '(share), or a mapping of what the image already holds (map). p99 is that of the slowest kind since the process attached. The bytes copied ' +
        'from lower layers, and the stalls, which are faults that waited for the disk, are also counted since then.',
      'The memory of a process consists of the image’s own blocks (own), memory of the mount’s clean store ' +
        '(shared), and clean copies, which are its alone (private). The last line shows the clean store of ' +
        'the mount, if it has one.',
    ],
    examples: [
      { command: 'pcow top /mnt', does: 'until Ctrl-C' },
      { command: 'pcow top /mnt --json', does: 'once, for a program' },
    ],
  });
}

async function top(given: string, options: { once?: boolean; json?: boolean }): Promise<void> {
  const { mount } = await findDirectory(given);
  if (mount === null) {
    throw new Failure('PCOW_MOUNT', `${quote(given)} is not mounted`, 'pcow mount DIR MOUNTPOINT');
  }
  let before: Look | null = null;
  for (;;) {
    const now = await look(mount);
    if (options.json === true) {
      sayJson(now);
      return;
    }
    if (options.once === true) {
      say(topTable(now, null, width()));
      return;
    }
    show(topTable(now, before, width()));
    before = now;
    await sleep(REFRESH_MS);
  }
}

async function look(mount: PcowMount): Promise<Look> {
  try {
    return await lookAt(mount, whileWaiting);
  } catch (error) {
    if (error instanceof PcowError) throw error;
    throw new Failure(
      'PCOW_MOUNT',
      `the mount on ${mount.mountpoint} has ended (${error instanceof Error ? error.message : String(error)})`,
      'attached processes continue: mount the directory again',
    );
  }
}

/** Programs get the full width. */
function width(): number {
  return isatty(1) ? process.stdout.columns : Infinity;
}

/** On a terminal it replaces the previous table, and prints no more than fits. */
function show(text: string): void {
  if (!isatty(1)) {
    say(`${text}\n`);
    return;
  }
  const lines = text.split('\n').slice(0, Math.max(1, process.stdout.rows - 1));
  put(inThisLocale(`${HOME_AND_CLEAR}${lines.join('\n')}\n`));
}
