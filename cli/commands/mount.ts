import path from 'node:path';
import type { Command } from 'commander';
import { howToName, imageFilesIn } from '../../src/engine/index.js';
import { parseStoreSize } from '../../src/images/sizes.js';
import { startDaemon } from '../../src/mount/daemon/daemon.js';
import { mountOnTheWay } from '../../src/images/mount-life.js';
import { monitorsProblem } from '../../src/client/mount-status.js';
import { Failure, warn } from '../output/errors.js';
import { whileWaiting } from '../find-image.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options {
  foreground?: boolean;
  allowOther?: boolean;
  readOnly?: boolean;
  log?: string;
  allowOutsideBase?: boolean;
  stop: boolean;
  checksums?: boolean;
  json?: boolean;
  showControl?: boolean;
  cleanStore?: number;
  wait?: number;
}

export function addMount(program: Command): void {
  const command = program
    .command('mount')
    .summary('show the images of a directory as flat files')
    .description(
      'Mounts an image directory: every image of it appears as a flat file. Returns when the mount is ' +
        'ready.',
    )
    .argument('<dir>', 'the image directory')
    .argument('<mountpoint>', 'an empty directory')
    .option('--foreground', 'stay in the foreground, and log to the terminal; Ctrl-C unmounts')
    .option(
      '--allow-other',
      'allow access to other users, as far as the modes of the images permit',
    )
    .option('--read-only', 'never write to an image')
    .option('--log <file>', 'append the log to this file; SIGHUP reopens it')
    .option('--allow-outside-base', 'also show images whose base is outside of the directory')
    .option(
      '--no-stop',
      'never stop a process for a snapshot: a file that is mapped cannot be snapshotted then',
    )
    .option('--show-control', 'list MOUNTPOINT/.pcow, which exists in any case')
    .option(
      '--checksums',
      'give each snapshot checksums in the background, for “pcow scrub” and for every read',
    )
    .option(
      '--clean-store <size>',
      'memory in which guests of one base share what they read of it, 64M or more; default: they do not share',
      parseStoreSize,
    )
    .option('--json', 'for programs: where it is mounted')
    .addOption(waitOption('what is mounted there, or another mount of the directory'))
    .action(mount);
  addNotes(command, {
    text: [
      'Control files in MOUNTPOINT/.pcow accept commands; MOUNTPOINT/.pcow/help lists them. New images in ' +
        'the directory appear in the mount automatically.',
      'MOUNTPOINT/.pcow is not listed, so that “cp -r” and “rsync -a” of a mount copy the images, and not each of their snapshots as well.',
      'A snapshot of a flat file that a process has mapped stops the process for a moment, so that it is a ' +
        'consistent cut.',
    ],
    examples: [
      { command: 'pcow mount /srv/images /mnt', does: 'starts a daemon; /mnt/vm1 is vm1.pcow' },
      {
        command: 'DEBUG=pcow:* pcow mount /srv/images /mnt --foreground',
        does: 'shows what it does',
      },
    ],
  });
}

async function mount(directory: string, mountpoint: string, options: Options): Promise<void> {
  const settings = {
    allowOther: options.allowOther,
    readOnly: options.readOnly,
    allowOutsideBase: options.allowOutsideBase,
    stopMappers: options.stop,
    checksums: options.checksums,
    showControl: options.showControl,
    cleanStore: options.cleanStore,
  };
  if (options.foreground === true) {
    if (options.log !== undefined) {
      throw new Failure(
        'PCOW_USAGE',
        '--log is for a daemon: with --foreground the log goes to the terminal',
      );
    }
    if (options.json === true) {
      throw new Failure(
        'PCOW_USAGE',
        '--json is for a daemon: with --foreground the log says when it is ready',
      );
    }
    const { endOnSignals, mountDirectory, tellReady } = await import('../../src/mount/index.js');
    // Its own log says when it is ready.
    const mounted = await patiently(options.wait, () =>
      mountDirectory(directory, mountpoint, settings),
    );
    endOnSignals(mounted);
    tellReady(`${mounted.directory} is mounted on ${mounted.mountpoint}`);
    const [failure] = await mounted.ended;
    if (failure !== undefined) {
      throw failure.error;
    }
    return;
  }
  await patiently(options.wait, () =>
    startDaemon(directory, mountpoint, { ...settings, log: options.log }),
  );
  if (options.json === true)
    sayJson({ directory: path.resolve(directory), mountpoint: path.resolve(mountpoint) });
  else say(`${directory} is mounted on ${mountpoint}`);
  for (const file of (await imageFilesIn(directory)).nameless) {
    warn('pcow', `${file.shown} is not shown: ${howToName(directory, file)}`);
  }
  const mount = await mountOnTheWay(mountpoint);
  const problem = mount === null ? null : await monitorsProblem(mount, whileWaiting);
  if (problem !== null) {
    warn('pcow', `${problem}. Until this is fixed, guests run only with “pcow run --plain”`);
  }
}
