/**
 * A layer of a registry as a stream for receive() (docs/stream.md). Its pieces are fetched in
 * groups, several groups at a time, and each is verified before anything of it is used.
 */
import { decompressed, type LongOptions } from '../engine/index.js';
import type { Begin, End } from '../stream/header.js';
import { chained, checksumOf, encodeRecord, encodeText, RecordType } from '../stream/record.js';
import { sha256 } from './digest.js';
import { corrupt, type ImageLayer } from './manifest.js';
import { ordered } from './ordered.js';
import { type Piece, type PieceIndex, runsOf } from './piece-index.js';
import { type BlobReader, cancelled, type Store } from './store.js';

/** Bytes of the data blob that one request fetches: many pieces for one round trip. */
const GROUP = 4 << 20;
/**
 * Groups that are fetched at the same time: with the pieces being decompressed, this bounds the
 * memory.
 */
const GROUPS_AT_ONCE = 4;
/** Pieces that are decompressed at the same time. */
const WIDTH = 4;

/** The beginning of the stream; `resumedAt` as in docs/stream.md. */
export type LayerBegin = Omit<Begin, 'data'>;

export async function* layerStream(
  store: Store,
  layer: ImageLayer,
  index: PieceIndex,
  begin: LayerBegin,
  { signal, onProgress }: LongOptions = {},
): AsyncGenerator<Buffer> {
  yield encodeText(RecordType.begin, { ...begin, data: layer.bytes } satisfies Begin);
  const end: End = { records: 0, data: 0, zeros: 0, checksum: 0 };
  const counted = (record: Buffer) => {
    end.records++;
    end.checksum = chained(end.checksum, checksumOf(record));
    return record;
  };
  for await (const { piece, bytes } of contents(store, layer, index, begin.resumedAt)) {
    if (signal?.aborted) throw cancelled('the pull', signal);
    let at = 0;
    for (const { kind, offset, length } of runsOf(piece)) {
      const part = kind === 'data' ? bytes.subarray(at, at + length) : null;
      at += part?.length ?? 0;
      // Records have the same ends as before an interruption.
      if (offset + length <= begin.resumedAt) continue;
      end[part === null ? 'zeros' : 'data'] += length;
      yield counted(
        encodeRecord(
          part === null ? RecordType.zeros : RecordType.data,
          offset,
          length,
          part ?? Buffer.alloc(0),
        ),
      );
    }
    onProgress?.(end.data, layer.bytes);
  }
  yield encodeText(RecordType.end, end);
}

interface Content {
  piece: Piece;
  /** Its data units, one after another. */
  bytes: Buffer;
}

async function* contents(
  store: Store,
  layer: ImageLayer,
  index: PieceIndex,
  from: number,
): AsyncGenerator<Content> {
  if (layer.data === null) {
    for (const piece of index.pieces()) yield { piece, bytes: Buffer.alloc(0) };
    return;
  }
  const reader = store.openBlob(layer.data);
  try {
    for await (const pieces of ordered(groups(index, from), GROUPS_AT_ONCE, (group) =>
      framesOf(reader, group),
    )) {
      yield* ordered(pieces, WIDTH, (it) => contentOf(store.name, it));
    }
  } finally {
    await reader.close();
  }
}

/** Pieces whose frames are neighbours. */
function* groups(index: PieceIndex, from: number): Generator<Piece[]> {
  let group: Piece[] = [];
  let length = 0;
  for (const piece of index.pieces()) {
    if (ends(piece) <= from) continue;
    if (length + piece.stored > GROUP) {
      yield group;
      [group, length] = [[], 0];
    }
    group.push(piece);
    length += piece.stored;
  }
  if (group.length > 0) yield group;
}

/** The end of the last run of a piece, in the image. */
function ends(piece: Piece): number {
  let end = 0;
  for (const { offset, length } of runsOf(piece)) end = offset + length;
  return end;
}

async function framesOf(
  reader: BlobReader,
  group: Piece[],
): Promise<{ piece: Piece; frame: Buffer }[]> {
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
async function contentOf(
  name: string,
  { piece, frame }: { piece: Piece; frame: Buffer },
): Promise<Content> {
  if (piece.stored === 0) return { piece, bytes: frame };
  if (!sha256(frame).equals(piece.digest))
    throw corrupt(name, `the bytes of piece ${piece.number} do not match its digest`);
  let length = 0;
  for (const run of runsOf(piece)) length += run.kind === 'data' ? run.length : 0;
  const bytes = await decompressed(frame, length);
  if (!sha256(bytes).equals(piece.content))
    throw corrupt(name, `the content of piece ${piece.number} does not match its digest`);
  return { piece, bytes };
}
