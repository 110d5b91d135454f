import type { Command } from 'commander';
import type { Image } from '../../src/engine/index.js';
import { parseToken } from '../../src/stream/resume-token.js';
import { resumedSending, type Sending, sendingOf, sendStream } from '../../src/stream/send.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { writeToStdout } from '../output/byte-streams.js';
import { type ProgressForm, progressOption, withProgress } from '../output/progress.js';
import { quote } from '../../src/engine/quote.js';
import { formatSize } from '../../src/images/sizes.js';
import { findSnapshotTarget, findTarget, type ImageTarget } from '../find-image.js';

interface Options {
  from?: string;
  resume?: string;
  dryRun?: boolean;
  json?: boolean;
  progress?: ProgressForm;
}

export function addSend(program: Command): void {
  const command = program
    .command('send')
    .summary('write a snapshot, or what changed since another, as a stream')
    .description(
      'Writes a snapshot to standard output as a stream: all of it, or only what changed since an older ' +
        'snapshot.',
    )
    .argument('<image@name>', 'the image and the snapshot to send; with --resume only the image')
    .option(
      '--from <name>',
      'send only what changed since this snapshot, which the receiver must have',
    )
    .option(
      '--resume <token>',
      'continue an interrupted stream, with the token of “pcow receive --resume-token”',
    )
    .option('--dry-run', 'only print what would be sent')
    .option('--json', 'with --dry-run: for programs')
    .addOption(progressOption())
    .action(send);
  addNotes(command, {
    text: [
      'The image may be in use. Every record of the stream has a checksum, and the receiver takes the ' +
        'snapshot only when all of it has arrived: docs/stream.md.',
    ],
    examples: [
      {
        command: 'pcow send vm1@monday | ssh backup pcow receive vm1',
        does: 'a first, whole copy',
      },
      {
        command: 'pcow send vm1@tuesday --from monday | ssh backup pcow receive vm1',
        does: 'what changed since',
      },
      {
        command:
          'pcow send vm1 --resume "$(ssh backup pcow receive --resume-token vm1)" | ssh backup pcow receive vm1',
        does: 'continues after an interruption',
      },
      { command: 'pcow send vm1@tuesday --from monday --dry-run', does: 'shows how much it is' },
    ],
  });
}

async function send(given: string, options: Options): Promise<void> {
  const { image: target, prepare } = await request(given, options);
  await withImage(target.file, {}, (image) =>
    withProgress(`send ${target.name}`, options.progress, async (long) => {
      const sending = await prepare(image, long.signal);
      if (options.dryRun === true) {
        tell(target, sending, options.json === true);
      } else {
        await writeToStdout(sendStream(image, sending, long), long.signal);
      }
    }),
  );
}

interface Request {
  image: ImageTarget;
  prepare: (image: Image, signal: AbortSignal) => Promise<Sending>;
}

async function request(given: string, { from, resume }: Options): Promise<Request> {
  if (resume === undefined) {
    const { image, snapshot } = await findSnapshotTarget(given);
    const older = from === undefined ? null : await olderSnapshot(image, from);
    return { image, prepare: (open, signal) => sendingOf(open, snapshot, older, signal) };
  }
  const token = parseToken(resume);
  const { image, snapshot } = await findTarget(given);
  if (from !== undefined || snapshot !== null) {
    throw new Failure(
      'PCOW_USAGE',
      'the resume token says what to send: give only the image',
      'pcow send IMAGE --resume TOKEN',
    );
  }
  return { image, prepare: (open, signal) => resumedSending(open, token, signal) };
}

/** `S0`, or `IMAGE@S0` of the same image. */
async function olderSnapshot(target: ImageTarget, given: string): Promise<string> {
  if (!given.includes('@')) {
    return given;
  }
  const { image, snapshot } = await findSnapshotTarget(given);
  if (image.file !== target.file) {
    throw new Failure(
      'PCOW_USAGE',
      `${quote(given)} is not a snapshot of ${target.name}`,
      'pcow send IMAGE@NEW --from OLD',
    );
  }
  return snapshot;
}

function tell(target: ImageTarget, { begin }: Sending, json: boolean): void {
  const { snapshot, from, data, resumedAt, size } = begin;
  if (json) {
    sayJson({
      image: target.name,
      snapshot: snapshot?.name ?? null,
      from: from?.name ?? null,
      size,
      resumedAt,
      data,
    });
    return;
  }
  const what = `${target.name}@${snapshot?.name ?? ''}${from === null ? '' : ` since ${from.name}`}`;
  say(
    `${what}: ${formatSize(data)} of data${resumedAt === 0 ? '' : `, from byte ${resumedAt} on`}`,
  );
}
