/** Invented streams: with correct checksums, and numbers that are invalid, or valid but extreme. */
import { Readable } from 'node:stream';
import test from 'ava';
import { Image, PcowError } from '../../src/engine/index.js';
import {
  chained,
  checksumOf,
  encodeRecord,
  encodeText,
  RecordType,
} from '../../src/stream/record.js';
import { receive } from '../../src/stream/receive.js';
import { bench, MiB, reading } from './images.js';

const SNAPSHOT = { name: 's', identity: '00000000000000aa', created: '2026-01-01T00:00:00Z' };

type Range = [type: number, offset: bigint, length: bigint, payload?: Buffer];

function streamWith(begin: object, ranges: Range[] = [], end: object = {}): Readable {
  const records = ranges.map(([type, offset, length, payload = Buffer.alloc(0)]) =>
    recordOf(type, offset, length, payload),
  );
  const total = (wanted: number) =>
    ranges
      .filter(([type]) => type === wanted)
      .reduce((sum, [, , length]) => sum + Number(length), 0);
  return Readable.from([
    encodeText(RecordType.begin, {
      ...{ version: 1, size: MiB, blockSize: 65536, snapshot: SNAPSHOT },
      ...{ from: null, resumedAt: 0, data: 0, history: [] },
      ...begin,
    }),
    ...records,
    encodeText(RecordType.end, {
      records: records.length,
      data: total(RecordType.data),
      zeros: total(RecordType.zeros),
      checksum: records.reduce((sum, record) => chained(sum, checksumOf(record)), 0),
      ...end,
    }),
  ]);
}

/** Numbers of all 64 bits. */
function recordOf(type: number, offset: bigint, length: bigint, payload: Buffer): Buffer {
  return encodeRecord(type, offset as unknown as number, length as unknown as number, payload);
}

test('valid values are kept unchanged', async (t) => {
  const { at } = await bench(t);
  const times = [
    '1970-01-01T00:00:00.000Z',
    '1969-12-31T23:59:59.999Z',
    '1677-09-22T00:00:00.000Z',
    '2262-04-11T00:00:00.000Z',
  ];
  for (const [number, created] of times.entries()) {
    const file = at(`image${number}`);
    const identity = number === 0 ? 'ffffffffffffffff' : '0000000000000001';
    await receive(streamWith({ snapshot: { ...SNAPSHOT, created, identity } }), file);
    const snapshot = await reading(file, (image) => image.snapshotInfo('s'));
    t.is(snapshot.created.toISOString(), created);
    t.is(snapshot.identity, identity);
  }
  const bytes = Buffer.from('xyz');
  const odd: Range[] = [
    [RecordType.data, 1n, 3n, bytes],
    [RecordType.zeros, 5n, 7n],
  ];
  await receive(streamWith({}, odd), at('odd'));
  const read = Buffer.alloc(8);
  await reading(at('odd'), (image) => image.read(read, 0, 's'));
  t.is(read.toString(), '\0xyz\0\0\0\0');
});

test('invalid values are refused, and make no snapshot', async (t) => {
  const { at } = await bench(t);
  const page = Buffer.alloc(4096, 1);
  const cases: Record<string, Readable> = {
    'year 275760': streamWith({
      snapshot: { ...SNAPSHOT, created: '+275760-09-13T00:00:00.000Z' },
    }),
    'year -271821': streamWith({
      snapshot: { ...SNAPSHOT, created: '-271821-04-20T00:00:00.000Z' },
    }),
    'just too late': streamWith({ snapshot: { ...SNAPSHOT, created: '2262-04-12T00:00:00.000Z' } }),
    'just too early': streamWith({
      snapshot: { ...SNAPSHOT, created: '1677-09-21T00:00:00.000Z' },
    }),
    'a time without a zone': streamWith({ snapshot: { ...SNAPSHOT, created: 'January 1' } }),
    'identity 0': streamWith({ snapshot: { ...SNAPSHOT, identity: '0000000000000000' } }),
    'an identity too long': streamWith({
      snapshot: { ...SNAPSHOT, identity: '100000000000000aa' },
    }),
    'a name that is none': streamWith({ snapshot: { ...SNAPSHOT, name: '../../x' } }),
    'size 1': streamWith({ size: 1 }),
    'size 2^53': streamWith({ size: 2 ** 53 }),
    '64 TiB of 4 KiB': streamWith({ size: 2 ** 46, blockSize: 4096 }),
    'negative data': streamWith({ data: -1 }),
    'more data than size': streamWith({ data: MiB + 1 }),
    'goes on behind the end': streamWith({ resumedAt: MiB + 1 }),
    'half a byte': streamWith({ resumedAt: 0.5 }),
    'a range at 2^53': streamWith({}, [[RecordType.zeros, 2n ** 53n, 4096n]]),
    'a range at 2^64 - 1': streamWith({}, [[RecordType.data, 2n ** 64n - 1n, 4096n, page]]),
    'a length of 2^63': streamWith({}, [[RecordType.zeros, 0n, 2n ** 63n]]),
    'a range that wraps round': streamWith({}, [[RecordType.zeros, 4096n, 2n ** 64n - 4096n]]),
    'a length of 0': streamWith({}, [[RecordType.zeros, 0n, 0n]]),
    'one byte too long': streamWith({}, [[RecordType.zeros, 0n, BigInt(MiB) + 1n]]),
    'a payload too short': streamWith({}, [[RecordType.data, 0n, 8192n, page]]),
    'zeros with a payload': streamWith({}, [[RecordType.zeros, 0n, 4096n, page]]),
    'an unknown type': streamWith({}, [[9, 0n, 4096n]]),
    'totals in bits that are too many': streamWith({}, [], { checksum: 2 ** 32 }),
  };
  for (const [number, [what, stream]] of Object.entries(cases).entries()) {
    const file = at(`image${number}`);
    const error = await t.throwsAsync(receive(stream, file), { instanceOf: PcowError }, what);
    t.regex(error.code, /^PCOW_(CORRUPT|INVALID|TOO_LARGE)$/, `${what}: ${error.message}`);
    const names = await reading(file, (image) => image.snapshotNames()).catch(() => []);
    t.deepEqual(names, [], what);
  }
});

test('an origin that cannot be stored in an image is refused, and the error names it', async (t) => {
  const { at } = await bench(t);
  await Image.create(at('image'), { size: MiB });
  const image = await Image.open(at('image'), { write: true });
  t.teardown(() => image.close());
  const identity = '00000000000000aa';
  const created = new Date(0);
  for (const origin of [
    { identity, created: new Date(NaN) },
    { identity, created: new Date(8.64e15) },
    { identity: '0'.repeat(16), created },
    { identity: 'AA', created },
  ]) {
    await t.throwsAsync(image.snapshot('s', origin), {
      code: 'PCOW_INVALID',
      message: /time|identity/,
    });
  }
  await image.snapshot('s', { identity, created });
  t.deepEqual(image.snapshotInfo('s').created, created);
});
