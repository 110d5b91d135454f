/**
 * Streams between images of one process: what arrives, what is refused, and what is kept of a
 * stream that broke off.
 */
import { stat } from 'node:fs/promises';
import test, { type ExecutionContext } from 'ava';
import { Image, PcowError } from '../../src/engine/index.js';
import { exportStream, importStream } from '../../src/stream/archive.js';
import { abandonReceiving, receive, resumeTokenOf } from '../../src/stream/receive.js';
import { formatToken, parseToken } from '../../src/stream/resume-token.js';
import { resumedSending, sendingOf, sendStream } from '../../src/stream/send.js';
import {
  bench,
  isSame,
  MiB,
  piecewise,
  reading,
  scribble,
  snapshotsOf,
  streamOf,
  working,
} from './images.js';

/** `source` with snapshots s0, s1, …: random content over each other, and growing. */
async function sourceImage(
  at: (name: string) => string,
  random: Parameters<typeof scribble>[1],
  count: number,
) {
  await Image.create(at('source'), { size: 64 * MiB, blockSize: 2 ** (12 + random.below(8)) });
  await working(at('source'), async (image) => {
    for (let number = 0; number < count; number++) {
      if (random.chance(0.3))
        await image.resize(image.info().size + 4096 * (1 + random.below(5000)));
      await scribble(image, random, 1 + random.below(40));
      await image.snapshot(`s${number}`);
    }
    await scribble(image, random, 10);
  });
}

/** With one of these codes. */
async function refused(
  t: ExecutionContext,
  work: Promise<unknown>,
  codes: RegExp,
  what: string,
): Promise<void> {
  const error = await t.throwsAsync(work, { instanceOf: PcowError }, what);
  t.regex(error.code, codes, what);
}

test('a chain of increments arrives byte for byte, with names, times and identities', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 6);
  for (let number = 0; number < 6; number++) {
    const bytes = await streamOf(
      at('source'),
      `s${number}`,
      number === 0 ? null : `s${number - 1}`,
    );
    const received = await receive(piecewise(bytes, random), at('copy'));
    t.is(received.snapshot, `s${number}`);
  }
  t.deepEqual(await snapshotsOf(at('copy')), await snapshotsOf(at('source')));
  const times = (file: string) =>
    reading(file, (image) => image.snapshots().map(({ created }) => created));
  t.deepEqual(await times(at('copy')), await times(at('source')));
  for (let number = 0; number < 6; number++)
    await isSame(t, [at('source'), `s${number}`], [at('copy'), `s${number}`]);
});

test('increments skip snapshots, outlive merges at the sender, and branch', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 5);
  await receive(piecewise(await streamOf(at('source'), 's1', null), random), at('copy'));
  await working(at('source'), (image) => image.delete('s2'));
  await receive(piecewise(await streamOf(at('source'), 's4', 's1'), random), at('copy'));
  await isSame(t, [at('source'), 's4'], [at('copy'), 's4']);
  // s3 on s1, beside s4.
  await receive(piecewise(await streamOf(at('source'), 's3', 's1'), random), at('copy'));
  await isSame(t, [at('source'), 's3'], [at('copy'), 's3']);
  await isSame(t, [at('source'), 's4'], [at('copy'), 's4']);
});

test('a snapshot that was renamed, on either side, is the same one for increments', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 4);
  await receive(piecewise(await streamOf(at('source'), 's1', null), random), at('copy'));
  await working(at('source'), (image) => image.renameSnapshot('s1', 'sent'));
  await receive(piecewise(await streamOf(at('source'), 's2', 'sent'), random), at('copy'));
  await working(at('copy'), (image) => image.renameSnapshot('s2', 'arrived'));
  await receive(piecewise(await streamOf(at('source'), 's3', 's2'), random), at('copy'));
  await isSame(t, [at('source'), 's2'], [at('copy'), 'arrived']);
  await isSame(t, [at('source'), 's3'], [at('copy'), 's3']);
  const again = streamOf(at('source'), 's2', 'sent').then((bytes) =>
    receive(piecewise(bytes, random), at('copy')),
  );
  await refused(t, again, /PCOW_EXISTS/, 'it is there, under another name');

  // Also a stream that broke off; the snapshot is renamed before it continues.
  const whole = await streamOf(at('source'), 'sent', null);
  await refused(t, receive(piecewise(whole.subarray(0, -100), random), at('late')), /./, 'a part');
  await working(at('source'), (image) => image.renameSnapshot('sent', 'later'));
  await receive(piecewise(await streamOf(at('source'), 'later', null), random), at('late'));
  await isSame(t, [at('source'), 'later'], [at('late'), 'later']);

  const archive = await reading(at('source'), async (image) => {
    const pieces: Uint8Array[] = [];
    for await (const piece of exportStream(image)) pieces.push(piece);
    return Buffer.concat(pieces);
  });
  await importStream(piecewise(archive, random), at('imported'));
  t.deepEqual(await snapshotsOf(at('imported')), await snapshotsOf(at('source')));
});

test('a clone is sent with everything that it reads from its base', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await Image.create(at('clone'), { base: { path: at('source'), snapshot: 's1' } });
  await working(at('clone'), async (image) => {
    await scribble(image, random, 20);
    await image.snapshot('own');
  });
  await receive(piecewise(await streamOf(at('clone'), 'own', null), random), at('copy'));
  await isSame(t, [at('clone'), 'own'], [at('copy'), 'own']);
});

test('a damaged stream is refused, the snapshots stay, and the transfer continues from what has arrived', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  const before = await snapshotsOf(at('copy'));
  const bytes = await streamOf(at('source'), 's1', 's0');
  for (let round = 0; round < 25; round++) {
    const damaged = Buffer.from(bytes);
    const place = random.below(bytes.length);
    damaged[place]! ^= 1 << random.below(8);
    await refused(
      t,
      receive(piecewise(damaged, random), at('copy')),
      /^PCOW_(CORRUPT|IO|INVALID)$/,
      `byte ${place}`,
    );
    t.deepEqual(await snapshotsOf(at('copy')), before);
  }
  await isSame(t, [at('source'), 's0'], [at('copy'), 's0']);
  await receive(piecewise(bytes, random), at('copy'));
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});

test('records that are missing, duplicated, exchanged or truncated are noticed', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  const records = await reading(at('source'), async (image) => {
    const list: Buffer[] = [];
    for await (const record of sendStream(image, await sendingOf(image, 's1', 's0')))
      list.push(record);
    return list;
  });
  t.true(records.length >= 3);
  const middle = 1 + random.below(records.length - 2);
  const variants = {
    missing: records.toSpliced(middle, 1),
    doubled: records.toSpliced(middle, 0, records[middle]!),
    exchanged: records.toSpliced(records.length - 2, 2, records.at(-1)!, records.at(-2)!),
    'cut off': records.slice(0, -1),
    'without a beginning': records.slice(1),
  };
  for (const [name, variant] of Object.entries(variants)) {
    await refused(
      t,
      receive(piecewise(Buffer.concat(variant), random), at('copy')),
      /^PCOW_(CORRUPT|IO)$/,
      name,
    );
    t.deepEqual(Object.keys(await snapshotsOf(at('copy'))), ['s0'], name);
  }
});

test('a stream that broke off continues where it was, any number of times', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  let bytes = await streamOf(at('source'), 's1', 's0');
  const whole = bytes.length;
  for (let round = 0; round < 5; round++) {
    const cut = bytes.subarray(0, random.below(bytes.length));
    await t.throwsAsync(receive(piecewise(cut, random), at('copy')), {
      code: 'PCOW_IO',
      message: /breaks off/,
    });
    const token = await resumeTokenOf(at('copy'));
    if (token === null) continue;
    t.deepEqual(parseToken(formatToken(token)), token);
    bytes = await reading(at('source'), async (image) => {
      const pieces: Buffer[] = [];
      for await (const piece of sendStream(image, await resumedSending(image, token)))
        pieces.push(piece);
      return Buffer.concat(pieces);
    });
    t.true(bytes.length <= whole + 64);
  }
  await receive(piecewise(bytes, random), at('copy'));
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
  t.is(await resumeTokenOf(at('copy')), null);
});

test('streams out of order are refused, and the error names what is missing', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 4);
  const increment = await streamOf(at('source'), 's3', 's2');
  await t.throwsAsync(receive(piecewise(increment, random), at('copy')), {
    code: 'PCOW_NOT_FOUND',
    message: /does not exist, and the stream has only the changes after s2/,
  });
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  await receive(piecewise(await streamOf(at('source'), 's1', 's0'), random), at('copy'));
  await t.throwsAsync(receive(piecewise(increment, random), at('copy')), {
    code: 'PCOW_NOT_FOUND',
    message:
      /no snapshot s2, which the changes of s3 stand on; the newest that both have is s1: send s2 --from s1 first/,
  });
  // The name alone is not enough.
  await working(at('copy'), (image) => image.snapshot('s2'));
  await t.throwsAsync(receive(piecewise(increment, random), at('copy')), {
    code: 'PCOW_NOT_FOUND',
    message: /another one with that name/,
  });
  await t.throwsAsync(
    receive(piecewise(await streamOf(at('source'), 's1', 's0'), random), at('copy')),
    {
      code: 'PCOW_EXISTS',
      message: /already has this snapshot, as s1/,
    },
  );
  await t.throwsAsync(
    receive(piecewise(await streamOf(at('source'), 's2', 's1'), random), at('copy')),
    {
      code: 'PCOW_EXISTS',
      message: /another snapshot named s2/,
    },
  );
  await t.throwsAsync(
    receive(piecewise(await streamOf(at('source'), 's3', null), random), at('copy')),
    {
      code: 'PCOW_EXISTS',
      message: /is not empty/,
    },
  );
});

test('a part that begins behind what has arrived is refused', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  const { s0, s1 } = await snapshotsOf(at('source'));
  const later = await reading(at('source'), async (image) => {
    const pieces: Buffer[] = [];
    const sending = await resumedSending(image, { from: s0!, to: s1!, offset: 32 * MiB });
    for await (const piece of sendStream(image, sending)) pieces.push(piece);
    return Buffer.concat(pieces);
  });
  await t.throwsAsync(receive(piecewise(later, random), at('copy')), {
    code: 'PCOW_NOT_FOUND',
    message: /has nothing of s1/,
  });
});

test('changes that are in no snapshot are not dropped by default', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  await working(at('copy'), (image) => image.write(Buffer.alloc(4096, 1), 0));
  const increment = await streamOf(at('source'), 's1', 's0');
  await t.throwsAsync(receive(piecewise(increment, random), at('copy')), {
    code: 'PCOW_BUSY',
    message: /in no snapshot/,
  });
  await receive(piecewise(increment, random), at('copy'), { force: true });
  await isSame(t, [at('source'), 's1'], [at('copy'), 's1']);
});

test('a transfer does not continue if the image was written in the meantime', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  await receive(piecewise(await streamOf(at('source'), 's0', null), random), at('copy'));
  const increment = await streamOf(at('source'), 's1', 's0');
  await t.throwsAsync(receive(piecewise(increment.subarray(0, -100), random), at('copy')), {
    code: 'PCOW_IO',
  });
  t.not(await resumeTokenOf(at('copy')), null);
  await working(at('copy'), (image) => image.write(Buffer.alloc(4096, 9), 4096));
  t.is(await resumeTokenOf(at('copy')), null);
  await t.throwsAsync(receive(piecewise(increment, random), at('copy')), { code: 'PCOW_BUSY' });
});

test('an unfinished stream can be given up: the image is as before', async (t) => {
  const { at, random } = await bench(t);
  await sourceImage(at, random, 2);
  const whole = await streamOf(at('source'), 's0', null);
  await t.throwsAsync(receive(piecewise(whole.subarray(0, -100), random), at('copy')), {
    code: 'PCOW_IO',
  });
  t.is(await abandonReceiving(at('copy')), 's0');
  await t.throwsAsync(stat(at('copy')), { code: 'ENOENT' });
  await receive(piecewise(whole, random), at('copy'));
  const increment = await streamOf(at('source'), 's1', 's0');
  await t.throwsAsync(receive(piecewise(increment.subarray(0, -100), random), at('copy')), {
    code: 'PCOW_IO',
  });
  await t.throwsAsync(receive(piecewise(whole, random), at('copy')), {
    code: 'PCOW_BUSY',
    message: /has begun to receive s1/,
  });
  t.is(await abandonReceiving(at('copy')), 's1');
  await isSame(t, [at('source'), 's0'], [at('copy'), null]);
  t.is(await abandonReceiving(at('copy')), null);
});

test('files that are not streams, and invalid tokens, are recognised', async (t) => {
  const { at, random } = await bench(t);
  const text = Buffer.from('This is no stream, but long enough to be one.');
  await t.throwsAsync(receive(piecewise(text, random), at('copy')), {
    code: 'PCOW_NOT_AN_IMAGE',
    message: /not a stream of pcow send/,
  });
  const disk = Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(100)]);
  await t.throwsAsync(importStream(piecewise(disk, random), at('copy')), {
    code: 'PCOW_NOT_AN_IMAGE',
    message: /^this is a qcow2 image, not a stream/,
  });
  const packed = Buffer.concat([Buffer.from('\x28\xb5\x2f\xfd', 'latin1'), Buffer.alloc(100)]);
  await t.throwsAsync(receive(piecewise(packed, random), at('copy')), {
    code: 'PCOW_INVALID',
    message: /compressed by zstd.*zstd -dc/,
  });
  await t.throwsAsync(receive(piecewise(Buffer.alloc(0), random), at('copy')), { code: 'PCOW_IO' });
  t.throws(() => parseToken('1-nothing-0000000000000000-0-00000000'), { code: 'PCOW_INVALID' });
});
