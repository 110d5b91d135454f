import type { Command } from 'commander';
import { isPcowError } from '../../src/engine/errors.js';
import { abandonReceiving, receive, resumeTokenOf } from '../../src/stream/receive.js';
import { formatToken, type ResumeToken } from '../../src/stream/resume-token.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { readFrom } from '../output/byte-streams.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { formatSize } from '../../src/images/sizes.js';
import { findImage, type ImageTarget, newImage } from '../find-image.js';
import { word } from '../../src/engine/quote.js';
import { patiently, waitOption } from '../wait-option.js';

interface Options {
  resumeToken?: boolean;
  abort?: boolean;
  force?: boolean;
  json?: boolean;
  wait?: number;
  progress?: ProgressForm;
}

export function addReceive(program: Command): void {
  const command = program
    .command('receive')
    .summary('write a stream of “pcow send” into an image')
    .description(
      'Reads a stream from standard input into an image, and takes the snapshot that the stream contains.',
    )
    .argument(
      '<image>',
      'the image that has the older snapshot; for a whole stream, it is made if it is missing',
    )
    .option(
      '--resume-token',
      'receive nothing; print a token for “pcow send --resume”: what has arrived of a stream that broke off',
    )
    .option('--abort', 'receive nothing; discard what arrived of a stream that broke off')
    .option('--force', 'drop data of the image that is in no snapshot')
    .option('--json', 'for programs')
    .addOption(waitOption())
    .addOption(progressOption())
    .action(receiveCommand);
  addNotes(command, {
    text: [
      'An incremental stream fits only the snapshot that it was made from, whatever its name is here. No ' +
        'process may have the image open for writing, not even a mount that was asked to change it, and the ' +
        'image must hold no data that is in no snapshot. Until the end of the stream has arrived, the image ' +
        'has its former snapshots only.',
    ],
    examples: [
      {
        command: 'pcow send vm1@monday | pcow receive /backup/vm1',
        does: 'a copy, with its snapshot',
      },
      {
        command: 'pcow receive --resume-token /backup/vm1',
        does: 'shows what arrived before the connection broke',
      },
      { command: 'pcow receive --abort /backup/vm1', does: 'discards it, to start again' },
    ],
  });
}

async function receiveCommand(given: string, options: Options): Promise<void> {
  if (options.resumeToken === true) {
    await printToken(await findImage(given), options);
  } else if (options.abort === true) {
    await abandon(await findImage(given), options);
  } else {
    await takeIn(await targetOf(given), options);
  }
}

async function targetOf(given: string): Promise<ImageTarget> {
  try {
    return await findImage(given);
  } catch (error) {
    if (!isPcowError(error, 'PCOW_NOT_FOUND')) {
      throw error;
    }
    return newImage(given);
  }
}

async function takeIn(target: ImageTarget, options: Options): Promise<void> {
  try {
    const received = await withProgress(`receive ${target.name}`, options.progress, (long) =>
      receive(readFrom(null, long.signal), target.file, {
        force: options.force ?? false,
        ...long,
        // Only the opening is repeated, because the stream can be read only once.
        opening: (open) => patiently(options.wait, open, long.signal),
      }),
    );
    if (options.json === true) {
      sayJson({ image: target.name, ...received });
    } else {
      say(`received ${target.name}@${received.snapshot}: ${formatSize(received.data)} of data`);
    }
  } catch (error) {
    throw await withNextStep(error, target);
  }
}

/** If data has arrived, the next step is to continue from there. */
async function withNextStep(error: unknown, target: ImageTarget): Promise<unknown> {
  const { mount } = target;
  if (isPcowError(error, 'PCOW_LOCKED') && mount !== null) {
    return new Failure(
      'PCOW_BUSY',
      `${target.name} is in use in the mount on ${mount.mountpoint}, and receiving needs the image for itself`,
      `end the mount first: pcow umount ${word(mount.mountpoint)}`,
    );
  }
  if (isPcowError(error, 'PCOW_EXISTS', 'PCOW_NOT_FOUND')) {
    return new Failure(
      error.code,
      error.message,
      '“pcow list IMAGE”, here and at the sender, shows what both have',
    );
  }
  if (!isPcowError(error, 'PCOW_CORRUPT', 'PCOW_IO', 'PCOW_CANCELLED', 'PCOW_NO_SPACE')) {
    return error;
  }
  let token: ResumeToken | null;
  try {
    token = await resumeTokenOf(target.file);
  } catch (second) {
    if (!isPcowError(second, 'PCOW_NOT_FOUND')) return error;
    token = null;
  }
  if (token === null) {
    const hint = 'nothing has arrived: see what the sender says, and send again';
    return isPcowError(error, 'PCOW_CORRUPT', 'PCOW_IO')
      ? new Failure(error.code, error.message, hint)
      : error;
  }
  return new Failure(
    error.code,
    error.message,
    `what arrived is kept: continue with “pcow send IMAGE --resume ${formatToken(token)}”`,
  );
}

async function printToken(target: ImageTarget, { json }: Options): Promise<void> {
  const token = await resumeTokenOf(target.file);
  if (token === null) {
    throw nothingBegun(target);
  }
  if (json === true) {
    sayJson({ image: target.name, token: formatToken(token), offset: token.offset });
  } else {
    say(formatToken(token));
  }
}

async function abandon(target: ImageTarget, { json }: Options): Promise<void> {
  const snapshot = await abandonReceiving(target.file);
  if (snapshot === null) {
    throw nothingBegun(target);
  }
  if (json === true) {
    sayJson({ image: target.name, abandoned: snapshot });
  } else {
    say(`gave up receiving ${target.name}@${snapshot}`);
  }
}

function nothingBegun(target: ImageTarget): Failure {
  return new Failure(
    'PCOW_NOT_FOUND',
    `${target.name} has no stream that broke off`,
    'there is nothing to continue: send the next snapshot as usual',
  );
}
