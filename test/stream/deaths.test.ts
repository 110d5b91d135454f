/**
 * Commands that are killed or interrupted at random moments: the image stays intact, and the
 * transfer continues from what has arrived.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, readdir, rm } from 'node:fs/promises';
import path from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { Image, isPcowError } from '../../src/engine/index.js';
import { exportStream } from '../../src/stream/archive.js';
import { receive, resumeTokenOf } from '../../src/stream/receive.js';
import { formatToken, type ResumeToken } from '../../src/stream/resume-token.js';
import { resumedSending, sendingOf, sendStream } from '../../src/stream/send.js';
import { effort } from '../helpers/effort.js';
import type { Random } from '../helpers/random.js';
import { bench, isSame, MiB, reading, scribble, snapshotsOf, streamOf, working } from './images.js';

const PCOW = fileURLToPath(new URL('../../cli/pcow.cjs', import.meta.url));

function start(t: ExecutionContext, cwd: string, ...words: string[]): ChildProcess {
  const child = spawn(process.execPath, [PCOW, ...words], { cwd, stdio: ['pipe', 'pipe', 'pipe'] });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

async function ended(child: ChildProcess): Promise<{ code: number | null; stderr: string }> {
  const pieces: Buffer[] = [];
  child.stderr?.on('data', (piece: Buffer) => pieces.push(piece));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stderr: Buffer.concat(pieces).toString() };
}

/**
 * `source` with `s0`, on which the receivers stand, and `s1`: 120 MiB that were written since, in
 * pieces.
 */
async function sourceImage(t: ExecutionContext) {
  const given = await bench(t);
  const { at, random } = given;
  await Image.create(at('source'), { size: 1024 * MiB });
  await working(at('source'), async (image) => {
    await scribble(image, random, 5);
    await image.snapshot('s0');
    for (let i = 0; i < 60; i++)
      await image.write(Buffer.alloc(2 * MiB, 1 + random.below(255)), 4096 * random.below(250_000));
    await scribble(image, random, 50);
    await image.snapshot('s1');
  });
  const whole = await streamOf(at('source'), 's0', null);
  await receive(Readable.from([whole]), at('copy'));
  return { ...given, before: await snapshotsOf(at('copy')) };
}

async function* rest(image: Image, token: ResumeToken | null): AsyncGenerator<Buffer> {
  yield* sendStream(
    image,
    token === null ? await sendingOf(image, 's1', 's0') : await resumedSending(image, token),
  );
}

/** Passes bytes on, and calls `strike` once after this many. */
async function* striking(
  bytes: AsyncIterable<Buffer>,
  after: number,
  strike: () => void,
): AsyncGenerator<Buffer> {
  let left = after;
  for await (const piece of bytes) {
    if (left >= 0 && left < piece.length) {
      yield piece.subarray(0, left);
      strike();
      yield piece.subarray(left);
    } else {
      yield piece;
    }
    left -= piece.length;
  }
}

const ROUNDS = effort(3, 20);

function signalOf(random: Random): 'SIGKILL' | 'SIGINT' {
  return random.pick(['SIGKILL', 'SIGINT']);
}

test('a receiver that is killed or interrupted keeps its snapshots, and continues from what it has', async (t) => {
  const { at, random, directory, before } = await sourceImage(t);
  let offset = 0;
  for (let round = 0; round <= ROUNDS; round++) {
    const token = await resumeTokenOf(at('copy'));
    t.true((token?.offset ?? 0) >= offset, 'what has arrived stays');
    offset = token?.offset ?? 0;
    const signal = signalOf(random);
    const moment = round === ROUNDS ? Infinity : random.below(130 * MiB);
    const child = start(t, directory, 'receive', 'copy', '--progress', 'json');
    const outcome = ended(child);
    await reading(at('source'), (image) =>
      // Its exit code shows how it ended; the pipe only shows that it is gone.
      pipeline(
        striking(rest(image, token), moment, () => child.kill(signal)),
        child.stdin!,
      ).catch(() => undefined),
    );
    const { code, stderr } = await outcome;
    if (code === 0) break;
    t.true(round < ROUNDS, stderr);
    t.is(code, signal === 'SIGINT' ? 130 : null, stderr);
    t.deepEqual(await snapshotsOf(at('copy')), before);
    await isSame(t, [at('source'), 's0'], [at('copy'), 's0']);
  }
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});

test('after a sender is killed or interrupted the receiver can continue', async (t) => {
  const { at, random, directory, before } = await sourceImage(t);
  for (let round = 0; ; round++) {
    const token = await resumeTokenOf(at('copy'));
    const words =
      token === null ? ['source@s1', '--from', 's0'] : ['source', '--resume', formatToken(token)];
    const child = start(t, directory, 'send', ...words);
    const outcome = ended(child);
    const signal = signalOf(random);
    const moment = round === ROUNDS ? Infinity : random.below(130 * MiB);
    const received = await receive(
      striking(child.stdout as AsyncIterable<Buffer>, moment, () => child.kill(signal)),
      at('copy'),
    ).catch((error: unknown) => error);
    const { code, stderr } = await outcome;
    if (!isPcowError(received)) {
      break;
    }
    t.is(received.code, 'PCOW_IO', received.message);
    t.true(round < ROUNDS, stderr);
    t.is(code, signal === 'SIGINT' ? 130 : null, stderr);
    t.deepEqual(await snapshotsOf(at('copy')), before);
  }
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});

test('one shell command makes an increment, another one continues it', async (t) => {
  const { at, directory } = await sourceImage(t);
  const shell = async (line: string) => {
    const child = spawn('bash', ['-o', 'pipefail', '-c', line], {
      cwd: directory,
      env: { ...process.env, NODE: process.execPath, PCOW },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return ended(child);
  };
  const cut = await shell(
    '"$NODE" "$PCOW" send source@s1 --from s0 | head -c 90M | "$NODE" "$PCOW" receive copy',
  );
  t.is(cut.code, 9);
  t.regex(
    cut.stderr,
    /^pcow: the stream breaks off after 94371840 bytes.*\n.*continue with “pcow send IMAGE --resume 1-[0-9a-f-]+”/m,
  );
  t.regex(cut.stderr, /^pcow: the receiver stopped reading the stream/m);
  const next = await shell(
    '"$NODE" "$PCOW" send source --resume "$("$NODE" "$PCOW" receive --resume-token copy)" | "$NODE" "$PCOW" receive copy --json',
  );
  t.is(next.code, 0, next.stderr);
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
  const refused = await shell('"$NODE" "$PCOW" receive --resume-token copy');
  t.is(refused.code, 4);
});

test('an import or export that is killed or interrupted makes nothing', async (t) => {
  const { at, random, directory } = await sourceImage(t);
  const exported = path.join(directory, 'all');
  const { code } = await ended(start(t, directory, 'export', 'source', exported));
  t.is(code, 0);
  for (let round = 0; round < ROUNDS; round++) {
    const signal = signalOf(random);
    const child = start(t, directory, 'import', '-', 'imported');
    const outcome = ended(child);
    await reading(at('source'), async (image) => {
      const bytes = striking(exportStream(image), random.below(90 * MiB), () => child.kill(signal));
      await pipeline(bytes, child.stdin!).catch(() => undefined);
    });
    t.is((await outcome).code, signal === 'SIGINT' ? 130 : null);
    await t.throwsAsync(access(at('imported')), { code: 'ENOENT' });
    if (signal === 'SIGINT')
      t.false((await readdir(directory)).some((name) => name.includes(`.${child.pid}.`)));
  }
  const outcome = await ended(start(t, directory, 'import', exported, 'imported'));
  t.is(outcome.code, 0, outcome.stderr);
  t.deepEqual(
    (await readdir(directory)).filter((name) => name.startsWith('.')),
    [],
    'what the killed ones left is gone',
  );
  await isSame(t, [at('source'), null], [at('imported'), null]);

  await interrupted(t, directory, ['export', 'source', 'half', '--progress', 'json'], () =>
    rm(path.join(directory, 'half')),
  );
  await t.throwsAsync(access(path.join(directory, 'half')), { code: 'ENOENT' });
});

/**
 * Starts a command and interrupts it at its first output; repeats that if it had finished before.
 */
async function interrupted(
  t: ExecutionContext,
  directory: string,
  words: string[],
  undo: () => Promise<void>,
): Promise<void> {
  for (let round = 0; round < 50; round++) {
    const child = start(t, directory, ...words);
    child.stderr!.once('data', () => child.kill('SIGINT'));
    const { code, stderr } = await ended(child);
    if (code === 130) return;
    t.is(code, 0, stderr);
    await undo();
  }
  t.fail('it was always done before it was interrupted');
}

test('a sender whose reader is stopped can be interrupted, and so can a comparison', async (t) => {
  const { directory } = await sourceImage(t);
  const child = start(t, directory, 'send', 'source@s1', '--progress', 'json');
  child.stderr!.once('data', () => child.kill('SIGINT'));
  t.is((await ended(child)).code, 130);
  await interrupted(t, directory, ['compare', 'source', 'source', '--progress', 'json'], () =>
    Promise.resolve(),
  );
});
