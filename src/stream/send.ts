/**
 * The sending side: the changes between two snapshots of an image, or everything that one snapshot
 * holds, as a stream (docs/stream.md).
 */
import {
  type Extent,
  type Image,
  type LayerInfo,
  type LongOptions,
  PcowError,
} from '../engine/index.js';
import type { Begin, End, Named } from './header.js';
import {
  chained,
  checksumOf,
  encodeRecord,
  encodeText,
  MAX_PAYLOAD,
  RecordType,
} from './record.js';
import type { ResumeToken } from './resume-token.js';

/** How many snapshots of the history a stream contains. */
export const HISTORY = 200;

/** The contents of a stream. */
export interface Sending {
  begin: Begin;
  /** The ranges of the snapshot to send, in ascending order. */
  extents: (signal: AbortSignal | undefined) => AsyncIterable<Extent>;
  /**
   * The id of the layer from which they are read: a name may mean another layer before the stream
   * ends.
   */
  layer: number;
}

/** The layer that prepare() reads. */
interface Source {
  id: number;
  size: number;
}

/** The changes of `snapshot` since `from`; if `from` is null, everything. */
export async function sendingOf(
  image: Image,
  snapshot: string,
  from: string | null,
  signal?: AbortSignal,
): Promise<Sending> {
  const source = image.snapshotInfo(snapshot);
  const { id, identity, created } = source;
  const older = from === null ? null : image.snapshotInfo(from);
  const extents = (stop: AbortSignal | undefined) =>
    older === null
      ? image.map({ snapshot: id, signal: stop })
      : image.diff(older.id, id, { signal: stop });
  return prepare(image, { source, extents, signal }, 0, {
    snapshot: { name: snapshot, identity, created: created.toISOString() },
    from: older === null ? null : { name: older.name, identity: older.identity },
    history: historyOf(image.layers(), id),
  });
}

/** The part that is missing at a receiver with this token. */
export async function resumedSending(
  image: Image,
  token: ResumeToken,
  signal?: AbortSignal,
): Promise<Sending> {
  const known = image.snapshots({ countData: false });
  const find = (identity: string): string => {
    const found = known.find((candidate) => candidate.identity === identity);
    if (found === undefined) {
      throw new PcowError(
        'PCOW_NOT_FOUND',
        `${image.info().path} no longer has the snapshot with the identity ${identity}, which the resume token names`,
      );
    }
    return found.name;
  };
  const from = token.from === null ? null : find(token.from);
  const whole = await sendingOf(image, find(token.to), from, signal);
  const source = { id: whole.layer, size: whole.begin.size };
  return prepare(image, { source, extents: whole.extents, signal }, token.offset, whole.begin);
}

export async function prepare(
  image: Image,
  {
    source,
    extents,
    signal,
  }: { source: Source; extents: Sending['extents']; signal?: AbortSignal | undefined },
  offset: number,
  { snapshot, from, history, hidden }: Pick<Begin, 'snapshot' | 'from' | 'history' | 'hidden'>,
): Promise<Sending> {
  const rest = (stop: AbortSignal | undefined) => after(extents(stop), offset);
  let data = 0;
  for await (const extent of rest(signal)) data += extent.kind === 'data' ? extent.length : 0;
  const begin: Begin = {
    version: 1,
    size: source.size,
    blockSize: image.info().blockSize,
    snapshot,
    from,
    resumedAt: offset,
    data,
    history,
    ...(hidden === true && { hidden }),
  };
  return { begin, extents: rest, layer: source.id };
}

/** The bytes of the stream, record by record. Progress counts bytes of data. */
export async function* sendStream(
  image: Image,
  sending: Sending,
  options: LongOptions = {},
): AsyncGenerator<Buffer> {
  const { begin, layer } = sending;
  const { signal, onProgress } = options;
  const end: End = { records: 0, data: 0, zeros: 0, checksum: 0 };
  const counted = (record: Buffer) => {
    end.records++;
    end.checksum = chained(end.checksum, checksumOf(record));
    return record;
  };
  yield encodeText(RecordType.begin, begin);
  for await (const { offset, length, kind } of sending.extents(signal)) {
    // If there is no snapshot below, zeros need not be sent.
    if (kind !== 'data') {
      if (begin.from === null) continue;
      end.zeros += length;
      yield counted(encodeRecord(RecordType.zeros, offset, length, Buffer.alloc(0)));
      continue;
    }
    for (let at = offset; at < offset + length; at += MAX_PAYLOAD) {
      stopWhere(signal);
      const bytes = Buffer.alloc(Math.min(MAX_PAYLOAD, offset + length - at));
      const count = await image.read(bytes, at, layer);
      if (count < bytes.length)
        throw new PcowError('PCOW_BUSY', `${image.info().path} became smaller during the send`);
      end.data += bytes.length;
      onProgress?.(end.data, begin.data);
      yield counted(encodeRecord(RecordType.data, at, bytes.length, bytes));
    }
  }
  yield encodeText(RecordType.end, end);
}

function stopWhere(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw new PcowError(
      'PCOW_CANCELLED',
      'sending was stopped; the receiver can continue from what it has',
      {
        cause: signal.reason,
      },
    );
  }
}

async function* after(extents: AsyncIterable<Extent>, offset: number): AsyncGenerator<Extent> {
  for await (const extent of extents) {
    const end = extent.offset + extent.length;
    if (end <= offset) continue;
    const from = Math.max(extent.offset, offset);
    yield { ...extent, offset: from, length: end - from };
  }
}

/** The snapshots on which a layer stands in its image, newest first. */
function historyOf(layers: readonly LayerInfo[], layer: number): Named[] {
  const known = new Map(layers.map((one) => [one.id, one]));
  const history: Named[] = [];
  let next = known.get(layer)?.parent ?? null;
  while (next !== null && history.length < HISTORY) {
    const found = known.get(next);
    if (found === undefined) break;
    if (found.name !== null && found.identity !== null)
      history.push({ name: found.name, identity: found.identity });
    next = found.parent;
  }
  return history;
}
