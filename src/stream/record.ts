/**
 * The records of a stream, as bytes: docs/stream.md. Every record has a checksum, which is verified
 * before anything in it is used.
 */
import { crc32c, PcowError } from '../engine/index.js';

/** Numbers are never reused for another type. */
export const RecordType = {
  begin: 1,
  data: 2,
  zeros: 3,
  end: 4,
  archive: 5,
  archiveEnd: 6,
} as const;

export interface StreamRecord {
  type: number;
  /** Bytes, in the image; 0 if the record has no range. */
  offset: number;
  /** Bytes, of the range. */
  length: number;
  payload: Buffer;
  checksum: number;
}

const MAGIC = 0x31524350; // "PCR1"
const HEADER = 32;
const NO_CHECKSUM = Buffer.alloc(4);
/** Bytes; also the size of one read or write. */
export const MAX_PAYLOAD = 1 << 20;

export function encodeRecord(
  type: number,
  offset: number,
  length: number,
  payload: Uint8Array,
): Buffer {
  return Buffer.concat([encodeHeader(type, offset, length, payload), payload]);
}

/** The bytes of a record before its payload. */
export function encodeHeader(
  type: number,
  offset: number,
  length: number,
  payload: Uint8Array,
): Buffer {
  const header = Buffer.alloc(HEADER);
  header.writeUInt32LE(MAGIC, 0);
  header.writeUInt32LE(type, 4);
  header.writeBigUInt64LE(BigInt(offset), 8);
  header.writeBigUInt64LE(BigInt(length), 16);
  header.writeUInt32LE(payload.length, 24);
  header.writeUInt32LE(crc32c(payload, crc32c(header)), 28);
  return header;
}

export function encodeText(type: number, value: unknown): Buffer {
  return encodeRecord(type, 0, 0, Buffer.from(JSON.stringify(value)));
}

export function checksumOf(record: Buffer): number {
  return record.readUInt32LE(28);
}

/**
 * The error for a stream that begins with these bytes: it is another kind of file, not a damaged
 * stream.
 */
function noStream(start: Buffer): PcowError {
  const [, , what, instead] =
    OTHERS.find(([magic, at]) => start.toString('latin1', at, at + magic.length) === magic) ?? [];
  const it = 'a stream of pcow send or pcow export';
  if (what === undefined) return new PcowError('PCOW_NOT_AN_IMAGE', `this is not ${it}`);
  return instead === undefined
    ? new PcowError('PCOW_NOT_AN_IMAGE', `this is ${what}, not ${it}`)
    : new PcowError('PCOW_INVALID', `this is ${what}, not ${it}: ${instead}`);
}

/**
 * The beginnings of other files: the bytes, their offset, the kind of file, and what to do, unless
 * it is to be converted.
 */
const OTHERS: readonly (readonly [string, number, string, string?])[] = [
  ['\x89PCOW\r\n\x1a', 0, 'a Pcow image', 'copy it as it is, or with pcow convert'],
  ['NBJL', 12, 'an image of the original Pcow'],
  ['QFI\xfb', 0, 'a qcow2 image'],
  ['KDMV', 0, 'a vmdk image'],
  ['# Disk DescriptorFile', 0, 'a vmdk image'],
  ['vhdxfile', 0, 'a vhdx image'],
  ['conectix', 0, 'a vhd image'],
  ['<<<', 0, 'a vdi image'],
  ['QED\0', 0, 'a qed image'],
  ['\x28\xb5\x2f\xfd', 0, 'a file compressed by zstd', 'decompress it first (zstd -dc FILE | …)'],
  ['\x1f\x8b', 0, 'a file compressed by gzip', 'decompress it first (gzip -dc FILE | …)'],
  ['\xfd7zXZ\0', 0, 'a file compressed by xz', 'decompress it first (xz -dc FILE | …)'],
];

/**
 * The checksum of a sequence of records. It shows when a record is missing, duplicated, or out of
 * order.
 */
export function chained(before: number, checksum: number): number {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(checksum);
  return crc32c(bytes, before);
}

export function corruptStream(why: string): PcowError {
  return new PcowError('PCOW_CORRUPT', `the stream is damaged: ${why}`, {
    next: 'send or export it again',
  });
}

/**
 * Works with the records of a stream of bytes. The stream is closed afterwards, even if it was not
 * read to its end.
 */
export async function withRecords<T>(
  source: AsyncIterable<Uint8Array>,
  work: (reader: RecordReader) => Promise<T>,
): Promise<T> {
  const bytes = source[Symbol.asyncIterator]();
  try {
    return await work(new RecordReader(bytes));
  } finally {
    await bytes.return?.();
  }
}

/** Reads records from a stream of bytes. */
export class RecordReader {
  readonly #source: AsyncIterator<Uint8Array>;
  #pieces: Uint8Array[] = [];
  #length = 0;
  #position = 0;

  constructor(source: AsyncIterator<Uint8Array>) {
    this.#source = source;
  }

  /** Returns null at the end of the bytes, if a record ends there. */
  async next(): Promise<StreamRecord | null> {
    const header = await this.#take(HEADER);
    if (header === null) return null;
    if (header.readUInt32LE(0) !== MAGIC) {
      throw this.#position === HEADER
        ? noStream(header)
        : corruptStream('a record does not begin with its magic number');
    }
    const payloadLength = header.readUInt32LE(24);
    const checksum = header.readUInt32LE(28);
    if (payloadLength > MAX_PAYLOAD) throw corruptStream('a record is longer than the limit');
    const payload = await this.#take(payloadLength);
    if (payload === null) throw brokenOff(this.#position);
    // As if the field of the checksum were zeros: the bytes belong to the source.
    const before = crc32c(NO_CHECKSUM, crc32c(header.subarray(0, 28)));
    if (crc32c(payload, before) !== checksum) {
      throw corruptStream(`the checksum of a record is wrong, before byte ${this.#position}`);
    }
    return {
      type: header.readUInt32LE(4),
      offset: exact(header.readBigUInt64LE(8)),
      length: exact(header.readBigUInt64LE(16)),
      payload,
      checksum,
    };
  }

  /** The same, but the stream must not have ended. */
  async must(): Promise<StreamRecord> {
    const record = await this.next();
    if (record === null) throw brokenOff(this.#position);
    return record;
  }

  async #take(length: number): Promise<Buffer | null> {
    while (this.#length < length) {
      const { value, done } = (await this.#source.next()) as IteratorResult<Uint8Array, undefined>;
      if (done === true || value === undefined) {
        if (this.#length === 0) return null;
        throw brokenOff(this.#position + this.#length);
      }
      this.#pieces.push(value);
      this.#length += value.length;
    }
    const [first] = this.#pieces;
    const bytes =
      first !== undefined && this.#pieces.length === 1
        ? Buffer.from(first.buffer, first.byteOffset, first.length)
        : Buffer.concat(this.#pieces);
    this.#pieces = bytes.length > length ? [bytes.subarray(length)] : [];
    this.#length -= length;
    this.#position += length;
    return bytes.subarray(0, length);
  }
}

/** Numbers beyond 2^53 would be rounded; no image is that large. */
function exact(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER))
    throw corruptStream('a range is outside of every image');
  return Number(value);
}

function brokenOff(position: number): PcowError {
  return new PcowError(
    'PCOW_IO',
    `the stream breaks off after ${position} bytes: its sender or the connection has ended`,
  );
}
