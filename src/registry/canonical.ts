/**
 * The content of a layer in its canonical form: the units of 4 KiB in which a snapshot differs from
 * the one below (docs/registry.md). Block sizes, and how the bytes were written, do not matter: the
 * same two contents give the same pieces everywhere.
 */
import type { Extent, Image } from '../engine/index.js';
import { PcowError } from '../engine/index.js';
import type { Part } from '../stream/plan.js';
import { ordered } from '../stream/ordered.js';
import { PIECE, UNIT, UNITS } from './piece-index.js';

/** A piece with its bytes: the data units, one after another. */
export interface PieceContent {
  number: number;
  data: bigint;
  zero: bigint;
  bytes: Buffer;
}

/** The number of pieces that are read at the same time. */
const WIDTH = 8;
const ZEROS = Buffer.alloc(UNIT);

/** The pieces of a layer in ascending order; those without a difference are left out. */
export async function* canonicalPieces(
  part: Part,
  signal: AbortSignal | undefined,
  onPiece?: () => void,
): AsyncGenerator<PieceContent, void> {
  for await (const piece of ordered(candidates(part, signal), WIDTH, (candidate) =>
    contentOf(part, candidate),
  )) {
    if (signal?.aborted)
      throw new PcowError('PCOW_CANCELLED', 'reading the image was stopped', {
        cause: signal.reason,
      });
    onPiece?.();
    if ((piece.data | piece.zero) !== 0n) yield piece;
  }
}

/** The number of pieces that canonicalPieces() examines. Reads only the tables. */
export async function countCandidates(
  part: Part,
  signal: AbortSignal | undefined,
): Promise<number> {
  let [count, next] = [0, 0];
  for await (const { offset, length, kind } of extentsOf(part, signal)) {
    if (kind !== 'data' && part.from === null) continue;
    const [first, end] = [
      Math.max(next, Math.floor(offset / PIECE)),
      Math.ceil((offset + length) / PIECE),
    ];
    if (end > first) count += end - first;
    next = Math.max(next, end);
  }
  return count;
}

/** The units of a piece in which the tables say that there may be a difference. */
interface Candidate {
  number: number;
  units: Uint8Array;
}

async function* candidates(part: Part, signal: AbortSignal | undefined): AsyncGenerator<Candidate> {
  let piece = null as Candidate | null;
  for await (const { offset, length, kind } of extentsOf(part, signal)) {
    // If there is no layer below, zeros are no difference.
    if (kind !== 'data' && part.from === null) continue;
    for (let unit = Math.floor(offset / UNIT); unit * UNIT < offset + length; unit++) {
      const number = Math.floor(unit / UNITS);
      if (piece?.number !== number) {
        if (piece !== null) yield piece;
        piece = { number, units: new Uint8Array(UNITS) };
      }
      piece.units[unit % UNITS] = 1;
    }
  }
  if (piece !== null) yield piece;
}

function extentsOf(
  { image, layer, from }: Part,
  signal: AbortSignal | undefined,
): AsyncIterable<Extent> {
  return from?.image === image
    ? image.diff(from.layer.id, layer.id, { signal })
    : image.diffToBase(layer.id, { signal });
}

async function contentOf(
  { image, layer, from }: Part,
  { number, units }: Candidate,
): Promise<PieceContent> {
  const start = number * PIECE;
  const [now, before] = await Promise.all([
    readUnits(image, layer, start, units),
    from === null ? null : readUnits(from.image, from.layer, start, units),
  ]);
  const kept: Buffer[] = [];
  let [data, zero] = [0n, 0n];
  for (let unit = 0; unit < UNITS; unit++) {
    if (units[unit] === 0 || start + unit * UNIT >= layer.size) continue;
    const bytes = now.subarray(unit * UNIT, (unit + 1) * UNIT);
    const below = before?.subarray(unit * UNIT, (unit + 1) * UNIT) ?? ZEROS;
    if (bytes.equals(below)) continue;
    if (bytes.equals(ZEROS)) {
      zero |= 1n << BigInt(unit);
    } else {
      data |= 1n << BigInt(unit);
      kept.push(bytes);
    }
  }
  return { number, data, zero, bytes: kept.length === UNITS ? now : Buffer.concat(kept) };
}

/** The chosen units of a piece; the others, and those beyond the end of the layer, are zeros. */
async function readUnits(
  image: Image,
  layer: Part['layer'],
  start: number,
  units: Uint8Array,
): Promise<Buffer> {
  const piece = Buffer.alloc(PIECE);
  const there = Math.min(UNITS, Math.max(0, Math.ceil((layer.size - start) / UNIT)));
  for (let unit = 0; unit < there; unit++) {
    if (units[unit] === 0) continue;
    let end = unit + 1;
    while (end < there && units[end] === 1) end++;
    const bytes = piece.subarray(unit * UNIT, end * UNIT);
    const count = await image.read(bytes, start + unit * UNIT, layer.id);
    if (count < bytes.length)
      throw new PcowError('PCOW_IO', `${image.info().path} ended early while it was read`);
    unit = end;
  }
  return piece;
}
