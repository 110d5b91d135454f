/**
 * A layer of a registry as a stream for receive() (docs/stream.md). Its pieces are fetched in
 * groups, several groups at a time, and each is verified before anything of it is used.
 */
import type { LongOptions } from '../engine/index.js';
import type { Begin, End } from '../stream/header.js';
import { chained, checksumOf, encodeHeader, encodeText, RecordType } from '../stream/record.js';
import { type Content, contentOf, framesOf } from './frames.js';
import type { ImageLayer } from './manifest.js';
import { ordered } from '../stream/ordered.js';
import { endOf, type Piece, type PieceIndex, runsOf } from './piece-index.js';
import { cancelled, type ReadableStore } from './store.js';

/** Bytes of the data blob that one request fetches: many pieces for one round trip. */
const GROUP = 4 << 20;
/**
 * Groups that are fetched at the same time: with the pieces being decompressed, this bounds the
 * memory.
 */
const GROUPS_AT_ONCE = 4;
/** Pieces that are decompressed at the same time. */
const WIDTH = 4;

const NOTHING = Buffer.alloc(0);

/** The beginning of the stream; `resumedAt` as in docs/stream.md. */
export type LayerBegin = Omit<Begin, 'data'>;

export async function* layerStream(
  store: ReadableStore,
  layer: ImageLayer,
  index: PieceIndex,
  begin: LayerBegin,
  { signal, onProgress }: LongOptions = {},
): AsyncGenerator<Buffer> {
  yield encodeText(RecordType.begin, { ...begin, data: layer.bytes } satisfies Begin);
  const end: End = { records: 0, data: 0, zeros: 0, checksum: 0 };
  for await (const { piece, bytes } of contents(store, layer, index, begin.resumedAt)) {
    if (signal?.aborted) throw cancelled('the pull', signal);
    let at = 0;
    for (const { kind, offset, length } of runsOf(piece)) {
      const part = kind === 'data' ? bytes.subarray(at, at + length) : null;
      at += part?.length ?? 0;
      // Records have the same ends as before an interruption.
      if (offset + length <= begin.resumedAt) continue;
      const payload = part ?? NOTHING;
      const type = part === null ? RecordType.zeros : RecordType.data;
      const header = encodeHeader(type, offset, length, payload);
      end[part === null ? 'zeros' : 'data'] += length;
      end.records++;
      end.checksum = chained(end.checksum, checksumOf(header));
      yield header;
      if (part !== null) yield part;
    }
    onProgress?.(end.data, layer.bytes);
  }
  yield encodeText(RecordType.end, end);
}

async function* contents(
  store: ReadableStore,
  layer: ImageLayer,
  index: PieceIndex,
  from: number,
): AsyncGenerator<Content> {
  if (layer.data === null) {
    for (const piece of index.pieces()) yield { piece, bytes: Buffer.alloc(0) };
    return;
  }
  const blob = layer.data;
  const reader = store.openBlob(blob);
  try {
    for await (const pieces of ordered(groups(index, from), GROUPS_AT_ONCE, (group) =>
      framesOf(reader, group),
    )) {
      yield* ordered(pieces, WIDTH, (it) => contentOf(store.name, blob, it));
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
    if (endOf(piece) <= from) continue;
    if (length + piece.stored > GROUP) {
      yield group;
      [group, length] = [[], 0];
    }
    group.push(piece);
    length += piece.stored;
  }
  if (group.length > 0) yield group;
}
