/**
 * How a layer of an artifact becomes a layer of a lazy image, block by block: which sub-blocks are
 * remote, and which are zero. A block of a lazy image has at most 64 KiB, so a sub-block is a unit.
 */
import { halvesOf, PIECE, type Piece, type PieceIndex, UNIT } from './piece-index.js';

/** Bytes: in larger blocks, a unit would be a part of a sub-block. */
export const LARGEST_LAZY_BLOCK = 64 << 10;

/** Entries of one call of Image.markRemote(). */
const BATCH = 1 << 16;
const ENTRY = 8;

/** What a block of a layer holds: a bit for each sub-block. */
export interface Block {
  number: number;
  data: number;
  zero: number;
}

/** The blocks of a piece that hold something. */
export function* blocksOf({ number, data, zero }: Piece, blockSize: number): Generator<Block> {
  const [units, blocks] = [blockSize / UNIT, PIECE / blockSize];
  const [withData, withZeros] = [halvesOf(data), halvesOf(zero)];
  for (let block = 0; block < blocks; block++) {
    const [half, shift] = [(block * units) >> 5, (block * units) & 31];
    const full = 2 ** units - 1;
    const [held, zeros] = [(withData[half]! >>> shift) & full, (withZeros[half]! >>> shift) & full];
    if ((held | zeros) !== 0) yield { number: number * blocks + block, data: held, zero: zeros };
  }
}

/** Arguments for Image.markRemote(): zeros in a block with data arrive together with it. */
export function* remoteMarks(index: PieceIndex, blockSize: number): Generator<Buffer> {
  let [batch, at] = [Buffer.alloc(BATCH * ENTRY), 0];
  for (const piece of index.pieces()) {
    for (const { number, data, zero } of blocksOf(piece, blockSize)) {
      if (data === 0) continue;
      batch.writeUInt32LE(number, at);
      batch.writeUInt16LE(data | zero, at + 4);
      at += ENTRY;
      if (at < batch.length) continue;
      yield batch;
      [batch, at] = [Buffer.alloc(BATCH * ENTRY), 0];
    }
  }
  if (at > 0) yield batch.subarray(0, at);
}

/** A range of bytes of the image. */
export interface Range {
  offset: number;
  length: number;
}

/** The ranges of a layer that are zero, in blocks without data. */
export function* zeroRanges(index: PieceIndex, blockSize: number): Generator<Range> {
  let run: Range | null = null;
  for (const piece of index.pieces()) {
    for (const { number, data, zero } of blocksOf(piece, blockSize)) {
      if (data !== 0) continue;
      for (let rest = zero; rest !== 0; rest &= rest - 1) {
        const unit = 31 - Math.clz32(rest & -rest);
        const offset: number = number * blockSize + unit * UNIT;
        if (run !== null && run.offset + run.length === offset) {
          run.length += UNIT;
          continue;
        }
        if (run !== null) yield run;
        run = { offset, length: UNIT };
      }
    }
  }
  if (run !== null) yield run;
}
