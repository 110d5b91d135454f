/** The frames of pieces in a data blob: reading them, and checking what is in them. */
import { decompressed, isPcowError } from '../engine/index.js';
import { sha256 } from './digest.js';
import { type Blob, corrupt } from './manifest.js';
import { bitsOf, type Piece, UNIT } from './piece-index.js';
import type { BlobReader } from './store.js';

/** A piece as it arrives. */
export interface Framed {
  piece: Piece;
  frame: Buffer;
}

/** A piece that has been checked. */
export interface Content {
  piece: Piece;
  /** Its data units, one after another. */
  bytes: Buffer;
}

/** Reads the frames of pieces that are neighbours in the index, in one part. */
export async function framesOf(reader: BlobReader, group: Piece[]): Promise<Framed[]> {
  const start = group[0]?.place ?? 0;
  const last = group.at(-1);
  const length = (last?.place ?? 0) + (last?.stored ?? 0) - start;
  const bytes = length === 0 ? Buffer.alloc(0) : await reader.read(start, length);
  return group.map((piece) => ({
    piece,
    frame: bytes.subarray(piece.place - start, piece.place - start + piece.stored),
  }));
}

/** Checks the digest first: nothing else reads bytes that are not those of the manifest. */
export async function contentOf(
  name: string,
  { digest }: Blob,
  { piece, frame }: Framed,
): Promise<Content> {
  if (piece.stored === 0) return { piece, bytes: frame };
  const damaged = (why: string) => corrupt(name, `piece ${piece.number} in ${digest} ${why}`);
  if (!sha256(frame).equals(piece.digest)) throw damaged('does not match its digest');
  const bytes = await decompressed(frame, bitsOf(piece.data) * UNIT).catch((error: unknown) => {
    throw isPcowError(error, 'PCOW_CORRUPT') ? damaged(`cannot be used: ${error.message}`) : error;
  });
  if (!sha256(bytes).equals(piece.content)) throw damaged('has other content than its index says');
  return { piece, bytes };
}
