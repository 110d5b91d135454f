/**
 * How a layer of an artifact becomes a layer of a lazy image, block by block: which sub-blocks are
 * remote, and which are zero. A block of a lazy image has at most 64 KiB, so a sub-block is a unit.
 */
import { halvesOf, PIECE, type Piece, type PieceIndex, UNIT } from './piece-index.js';

/** Bytes: in larger blocks, a unit would be a part of a sub-block. */
export const LARGEST_LAZY_BLOCK = 64 << 10;

/** Entries of one call of Image.markRemote(), or a few more. */
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

/** An argument for Image.markRemote() and giveBack(): zeros in a block belong to its data. */
export function encodeMarks(blocks: readonly Block[]): Buffer {
  const marks = Buffer.alloc(blocks.length * ENTRY);
  for (const [at, { number, data, zero }] of blocks.entries()) {
    marks.writeUInt32LE(number, at * ENTRY);
    marks.writeUInt16LE(data | zero, at * ENTRY + 4);
  }
  return marks;
}

/** Arguments for Image.markRemote(): zeros in a block with data arrive together with it. */
export function* remoteMarks(index: PieceIndex, blockSize: number): Generator<Buffer> {
  let batch: Block[] = [];
  for (const piece of index.pieces()) {
    for (const block of blocksOf(piece, blockSize)) if (block.data !== 0) batch.push(block);
    if (batch.length < BATCH) continue;
    yield encodeMarks(batch);
    batch = [];
  }
  if (batch.length > 0) yield encodeMarks(batch);
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
