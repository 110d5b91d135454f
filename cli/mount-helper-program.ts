/**
 * `mount.fuse.pcow`: mount(8) runs it for the type fuse.pcow, from a command line or /etc/fstab.
 */
import type { Command } from 'commander';
import { type DaemonOptions, startDaemon } from '../src/mount/daemon/daemon.js';
import { Failure } from './output/errors.js';
import { addNotes } from './output/help.js';
import { newProgram } from './run-program.js';
import { parseStoreSize } from '../src/images/sizes.js';
import { quote } from '../src/engine/quote.js';

interface Options {
  o: string[];
  fake?: boolean;
  sloppy?: boolean;
}

/**
 * Options of mount(8) that hold for every mount of Pcow anyway, or that are not meant for it. A
 * mount has no devices, set-user-ID programs or symbolic links; names are durable before a call
 * returns; times are those of the image files.
 */
const WITHOUT_EFFECT = new RegExp(
  `^(${[
    'defaults|(no)?auto|nofail|_netdev|silent|loud|x-.*|comment=.*|helper=.*',
    '(no)?users?|user=.*|(no)?owner|(no)?group',
    '(no)?suid|(no)?dev|dirsync|(no)?symfollow|(no)?mand|(no)?iversion',
    '(no)?(atime|diratime|relatime|strictatime|lazytime)',
  ].join('|')})$`,
  'i',
);

/** The other options, with their settings. */
const SETTINGS: Readonly<Record<string, DaemonOptions>> = {
  ro: { readOnly: true },
  rw: { readOnly: false },
  allow_other: { allowOther: true },
  allow_outside_base: { allowOutsideBase: true },
  no_stop: { stopMappers: false },
  checksums: { checksums: true },
  show_control: { showControl: true },
  sync: { sync: true },
  async: { sync: false },
  noexec: { noExec: true },
  exec: { noExec: false },
};

export function mountHelperProgram(): Command {
  const program = newProgram('mount.fuse.pcow')
    .summary('mount an image directory of Pcow')
    .description(
      'Mounts an image directory of Pcow.\n\nAs “pcow mount” does. mount(8) runs it for the type fuse.pcow, also for lines of /etc/fstab.',
    )
    .argument('<dir>', 'the image directory')
    .argument('<mountpoint>', 'an empty directory')
    .option('-o <options>', 'mount options, separated by commas', collected, [])
    .option('-f, --fake', 'check the options, and mount nothing')
    .option('-s, --sloppy', 'ignore unknown options')
    .option('-n', 'as in mount(8); without effect')
    .option('-v', 'as in mount(8); without effect')
    .option('-t <type>', 'as in mount(8); without effect')
    .usage('<dir> <mountpoint> [-o options]')
    .action(mountIt);
  addNotes(program, {
    text: [
      'Options after -o: “ro” (never write to an image), “allow_other” (let other users in, as far as the modes of the images let them), ' +
        '“allow_outside_base” (show images whose base lies outside of the directory), “no_stop” (never stop a process for a ' +
        'snapshot), “checksums” (give each snapshot checksums, in the background), “show_control” (list the directory .pcow), “clean_store=SIZE” (memory in which guests of one base share what they read of it, 64M or more), “log=FILE” (append the log to this file; SIGHUP opens it anew). Of mount(8)’s own options, “noexec” and “sync” (each write is durable before it returns) ' +
        'have their usual meaning, “user”, “users”, “owner” and “group” decide which users may mount, and the other common ones are accepted.',
    ],
    examples: [
      { command: 'mount -t fuse.pcow /srv/images /mnt', does: 'as pcow mount /srv/images /mnt' },
      {
        command: '/srv/images /mnt fuse.pcow allow_other,log=/var/log/pcow.log,nofail 0 0',
        does: 'a line of /etc/fstab',
      },
    ],
  });
  return program;
}

async function mountIt(directory: string, mountpoint: string, options: Options): Promise<void> {
  const settings = settingsOf(options.o, options.sloppy === true);
  if (options.fake !== true) {
    await startDaemon(directory, mountpoint, settings);
  }
}

/** The settings for the words after -o. */
export function settingsOf(words: string[], sloppy: boolean): DaemonOptions {
  const settings: DaemonOptions = {};
  for (const word of words) {
    const setting = SETTINGS[word];
    if (setting !== undefined) Object.assign(settings, setting);
    else if (word.startsWith('log=')) settings.log = word.slice('log='.length);
    else if (word.startsWith('clean_store='))
      settings.cleanStore = parseStoreSize(word.slice('clean_store='.length));
    else if (!sloppy && !WITHOUT_EFFECT.test(word)) throw unknown(word);
  }
  return settings;
}

function unknown(word: string): Failure {
  return word === 'remount'
    ? new Failure(
        'PCOW_USAGE',
        'the options of a mount cannot be changed',
        'unmount it, then mount it with the new options',
      )
    : new Failure('PCOW_USAGE', `there is no mount option ${quote(word)}`, 'man 8 mount.fuse.pcow');
}

function collected(list: string, before: string[]): string[] {
  return [...before, ...list.split(',').filter((word) => word !== '')];
}
