import path from 'node:path';
import type { Command } from 'commander';
import { howToName, imageFilesIn } from '../../src/engine/index.js';
import { startDaemon } from '../../src/mount/daemon.js';
import { mountOnTheWay } from '../../src/answers.js';
import { monitorsProblem } from '../control.js';
import { Failure, warn } from '../errors.js';
import { addNotes } from '../help.js';
import { say, sayJson } from '../output.js';

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
}

export function addMount(program: Command): void {
  const command = program
    .command('mount')
    .summary('show the images of a directory as flat files')
    .description('Mounts an image directory: every image of it shows as a flat file. Returns when the mount is ready.')
    .argument('<dir>', 'the image directory')
    .argument('<mountpoint>', 'an empty directory')
    .option('--foreground', 'stay, and log to the terminal; Ctrl-C unmounts')
    .option('--allow-other', 'let other users in, as far as the modes of the images let them')
    .option('--read-only', 'never write to an image')
    .option('--log <file>', 'append what happens to this file; SIGHUP opens it anew')
    .option('--allow-outside-base', 'show images whose base lies outside of the directory, too')
    .option('--no-stop', 'never stop a process for a snapshot: of a mapped file there is none then')
    .option('--show-control', 'list MOUNTPOINT/.pcow, which is there for whoever names it in any case')
    .option('--checksums', 'give each snapshot checksums in the background, for “pcow scrub” and for whoever reads it')
    .option('--json', 'for programs: where it is mounted')
    .action(mount);
  addNotes(command, {
    text: [
      'Control files under MOUNTPOINT/.pcow take commands; MOUNTPOINT/.pcow/help tells which. New images in the ' +
        'directory appear in the mount by themselves.',
      'MOUNTPOINT/.pcow is not listed, so that “cp -r” and “rsync -a” of a mount copy the images, and not each of their snapshots as well.',
      'A snapshot of a flat file that a process has mapped stops the process for a moment, so that it is a ' +
        'consistent cut.',
    ],
    examples: [
      { command: 'pcow mount /srv/images /mnt', does: 'leaves a daemon; /mnt/vm1 is vm1.pcow' },
      { command: 'DEBUG=pcow:* pcow mount /srv/images /mnt --foreground', does: 'to watch what it does' },
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
  };
  if (options.foreground === true) {
    if (options.log !== undefined) {
      throw new Failure('PCOW_USAGE', '--log is for a daemon: with --foreground the log goes to the terminal');
    }
    if (options.json === true) {
      throw new Failure('PCOW_USAGE', '--json is for a daemon: with --foreground the log says when it is ready');
    }
    const { endOnSignals, mountDirectory, tellReady } = await import('../../src/mount/index.js');
    // Its own log says when it is ready.
    const mounted = await mountDirectory(directory, mountpoint, settings);
    endOnSignals(mounted);
    tellReady(`${mounted.directory} is mounted on ${mounted.mountpoint}`);
    const [failure] = await mounted.ended;
    if (failure !== undefined) {
      throw failure.error;
    }
    return;
  }
  await startDaemon(directory, mountpoint, { ...settings, log: options.log });
  if (options.json === true) sayJson({ directory: path.resolve(directory), mountpoint: path.resolve(mountpoint) });
  else say(`${directory} is mounted on ${mountpoint}`);
  for (const file of (await imageFilesIn(directory)).nameless) {
    warn('pcow', `${file.shown} is not shown: ${howToName(directory, file)}`);
  }
  const mount = await mountOnTheWay(mountpoint);
  const problem = mount === null ? null : await monitorsProblem(mount);
  if (problem !== null) {
    warn('pcow', `${problem}. Until then guests run with “pcow run --plain” only`);
  }
}
