/**
 * The index of a layer: where each of its pieces is in the data blob, what it covers, and its
 * digests (docs/registry.md). An index comes from outside, so parsing checks everything in it.
 */
import { sha256 } from './digest.js';
import { PcowError } from '../engine/index.js';

/** Bytes of the image that one piece covers: measured by scripts/piece-sizes.ts. */
export const PIECE = 256 << 10;
/** Bytes: what a bit of a mask stands for. */
export const UNIT = 4096;
export const UNITS = PIECE / UNIT;
/** Bytes of the longest frame: zstd never makes a longer one from a piece. */
export const LONGEST_FRAME = PIECE + 4096;
/** Of one layer: 256 GiB of changed ranges. */
export const MOST_PIECES = 1 << 20;

const MAGIC = Buffer.from('PCOWPIX\0', 'latin1');
const VERSION = 1;
const HEADER = 64;
const RECORD = 112;
export const LONGEST_INDEX = HEADER + MOST_PIECES * RECORD;

/** A piece: the units of one range of PIECE bytes of the image that differ from the layer below. */
export interface Piece {
  /** The range begins at this number times PIECE. */
  number: number;
  /** The units with bytes: bit 0 is the first. */
  data: bigint;
  /** The units that became zeros. */
  zero: bigint;
  /** Where its frame begins in the data blob. */
  place: number;
  /** Bytes of its frame; 0 if it has no data. */
  stored: number;
  /** SHA-256 of the frame; zeros if there is none. */
  digest: Buffer;
  /** SHA-256 of the data units, one after another; zeros if there are none. */
  content: Buffer;
}
/** For messages about damage. */
const NEXT = 'push it again, or pull it from elsewhere';

const NO_DIGEST = Buffer.alloc(32);

/** The digest in a record: zeros if there are no bytes. */
export function recordDigest(bytes: Uint8Array): Buffer {
  return bytes.length === 0 ? NO_DIGEST : sha256(bytes);
}

export class IndexBuilder {
  readonly #records: Buffer[] = [];
  #place = 0;

  add({ number, data, zero, stored, digest, content }: Omit<Piece, 'place'>): void {
    if (this.#records.length === MOST_PIECES) {
      throw new PcowError(
        'PCOW_LIMIT',
        `a layer in a registry has at most ${MOST_PIECES} pieces of ${PIECE / 1024} KiB, and this one has more`,
        { next: 'push more snapshots, with fewer changes between them' },
      );
    }
    const record = Buffer.alloc(RECORD);
    record.writeBigUInt64LE(BigInt(number), 0);
    record.writeBigUInt64LE(BigInt(this.#place), 8);
    record.writeUInt32LE(stored, 16);
    record.writeBigUInt64LE(data, 24);
    record.writeBigUInt64LE(zero, 32);
    digest.copy(record, 48);
    content.copy(record, 80);
    this.#records.push(record);
    this.#place += stored;
  }

  /** `size`: of the image at this layer. */
  finish(size: number): Buffer {
    const header = Buffer.alloc(HEADER);
    MAGIC.copy(header, 0);
    header.writeUInt32LE(VERSION, 8);
    header.writeUInt32LE(PIECE, 12);
    header.writeBigUInt64LE(BigInt(size), 16);
    header.writeBigUInt64LE(BigInt(this.#records.length), 24);
    header.writeBigUInt64LE(BigInt(this.#place), 32);
    return Buffer.concat([header, ...this.#records]);
  }
}

/**
 * A verified index. Its pieces are decoded one by one, so it takes no more memory than its bytes.
 */
export class PieceIndex {
  private constructor(
    private readonly bytes: Buffer,
    readonly count: number,
    /** Bytes of data in all its units. */
    readonly data: number,
  ) {}

  /**
   * `size` and `stored`: of the image at this layer, and of its data blob, as the config says.
   * `what`: how messages begin.
   */
  static parse(bytes: Buffer, size: number, stored: number, what: string): PieceIndex {
    const corruptIndex = (why: string) =>
      new PcowError('PCOW_CORRUPT', `${what}: ${why}`, { next: NEXT });
    if (bytes.length < HEADER || !bytes.subarray(0, 8).equals(MAGIC))
      throw corruptIndex('it does not begin as an index');
    if (bytes.readUInt32LE(8) !== VERSION || bytes.readUInt32LE(12) !== PIECE) {
      throw new PcowError(
        'PCOW_UNSUPPORTED',
        'an index of the image has a version that this Pcow does not know',
        {
          next: 'use a newer Pcow',
        },
      );
    }
    const count = Number(bytes.readBigUInt64LE(24));
    if (count > MOST_PIECES || bytes.length !== HEADER + count * RECORD)
      throw corruptIndex('its length is wrong');
    if (Number(bytes.readBigUInt64LE(16)) !== size)
      throw corruptIndex('it belongs to an image of another size');
    if (Number(bytes.readBigUInt64LE(32)) !== stored)
      throw corruptIndex('it belongs to another data blob');
    let [data, place, last] = [0, 0, -1];
    for (let at = 0; at < count; at++) {
      const piece = pieceAt(bytes, at);
      const fault = faultIn(piece, size, place, last);
      if (fault !== null) throw corruptIndex(`piece ${at} ${fault}`);
      data += bitsOf(piece.data) * UNIT;
      place += piece.stored;
      last = piece.number;
    }
    if (place !== stored) throw corruptIndex('its pieces do not fill the data blob');
    return new PieceIndex(bytes, count, data);
  }

  piece(at: number): Piece {
    return pieceAt(this.bytes, at);
  }

  /** The place in the index of the piece with this number; null: the layer has none. */
  find(number: number): number | null {
    let [from, to] = [0, this.count];
    while (from < to) {
      const middle = (from + to) >> 1;
      const there = Number(this.bytes.readBigUInt64LE(HEADER + middle * RECORD));
      if (there === number) return middle;
      if (there < number) from = middle + 1;
      else to = middle;
    }
    return null;
  }

  *pieces(): Generator<Piece> {
    for (let at = 0; at < this.count; at++) yield this.piece(at);
  }
}

function pieceAt(bytes: Buffer, at: number): Piece {
  const record = bytes.subarray(HEADER + at * RECORD, HEADER + (at + 1) * RECORD);
  return {
    number: Number(record.readBigUInt64LE(0)),
    place: Number(record.readBigUInt64LE(8)),
    stored: record.readUInt32LE(16),
    data: record.readBigUInt64LE(24),
    zero: record.readBigUInt64LE(32),
    digest: record.subarray(48, 80),
    content: record.subarray(80, 112),
  };
}

/** null: there is none. */
function faultIn(
  { number, place, stored, data, zero }: Piece,
  size: number,
  expected: number,
  last: number,
): string | null {
  if (number <= last) return 'is out of order';
  if (number * PIECE >= size) return 'is outside of the image';
  const units = Math.min(UNITS, Math.ceil((size - number * PIECE) / UNIT));
  if ((data | zero) >> BigInt(units) !== 0n) return 'reaches beyond the image';
  if ((data & zero) !== 0n || (data | zero) === 0n) return 'contradicts itself, or is empty';
  if (place !== expected) return 'is not behind the one before';
  if (stored > LONGEST_FRAME || (stored === 0) !== (data === 0n)) return 'has an impossible length';
  return null;
}

export function bitsOf(mask: bigint): number {
  let bits = 0;
  for (let rest of halvesOf(mask)) for (; rest !== 0; rest &= rest - 1) bits++;
  return bits;
}

/** The lower and the upper half: much faster than calculating with all 64 bits. */
export function halvesOf(mask: bigint): [number, number] {
  return [Number(mask & 0xffffffffn) | 0, Number(mask >> 32n) | 0];
}

/** The end of the last unit of a piece that differs from the layer below, in the image. */
export function endOf({ number, data, zero }: Piece): number {
  const [low, high] = halvesOf(data | zero);
  const units = high === 0 ? 32 - Math.clz32(low) : UNITS - Math.clz32(high);
  return number * PIECE + units * UNIT;
}

/** A range of units of one kind, in bytes of the image. */
export interface Run {
  kind: 'data' | 'zero';
  offset: number;
  length: number;
}

/** The ranges of a piece, in ascending order. */
export function* runsOf({
  number,
  data,
  zero,
}: Pick<Piece, 'number' | 'data' | 'zero'>): Generator<Run> {
  const [withData, withZeros] = [halvesOf(data), halvesOf(zero)];
  let run = null as Run | null;
  for (let unit = 0; unit < UNITS; unit++) {
    const [half, bit] = [unit >> 5, 1 << (unit & 31)];
    const kind =
      (withData[half]! & bit) !== 0 ? 'data' : (withZeros[half]! & bit) !== 0 ? 'zero' : null;
    if (run?.kind === kind) {
      run.length += UNIT;
      continue;
    }
    if (run !== null) yield run;
    run = kind === null ? null : { kind, offset: number * PIECE + unit * UNIT, length: UNIT };
  }
  if (run !== null) yield run;
}
