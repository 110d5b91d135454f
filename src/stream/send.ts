/** The sending side: the changes between two snapshots of an image, or all that one holds, as a stream (docs/stream.md). */
import { type Extent, type Image, type LongOptions, PcowError } from '../engine/index.js';
import type { Begin, End, Named } from './header.js';
import { chained, checksumOf, encodeRecord, encodeText, MAX_PAYLOAD, RecordType } from './record.js';
import type { ResumeToken } from './resume-token.js';

/** How much of its history a stream tells. */
const HISTORY = 200;

/** What a stream is to hold. */
export interface Sending {
  begin: Begin;
  /** The ranges of the snapshot that are to be sent, in ascending order. */
  extents: (signal: AbortSignal | undefined) => AsyncIterable<Extent>;
  /** null: the active layer. */
  snapshot: string | null;
}

/** The changes of `snapshot` since `from`; where that is null, all of it. */
export async function sendingOf(
  image: Image,
  snapshot: string,
  from: string | null,
  signal?: AbortSignal,
): Promise<Sending> {
  const { identity, created } = image.snapshotInfo(snapshot);
  const extents = (stop: AbortSignal | undefined) =>
    from === null ? image.map({ snapshot, signal: stop }) : image.diff(from, snapshot, { signal: stop });
  return prepare(image, { snapshot, extents, signal }, 0, {
    snapshot: { name: snapshot, identity, created: created.toISOString() },
    from: from === null ? null : namedOf(image, from),
  });
}

/** What is still missing at a receiver that has handed out this token. */
export async function resumedSending(image: Image, token: ResumeToken, signal?: AbortSignal): Promise<Sending> {
  const known = image.snapshots({ countData: false });
  const find = (identity: string) => {
    const found = known.find((candidate) => candidate.identity === identity);
    if (found === undefined) {
      throw new PcowError(
        'PCOW_NOT_FOUND',
        `${image.info().path} has no snapshot with the identity ${identity} any more, which the resume token asks for`,
      );
    }
    return found.name;
  };
  const from = token.from === null ? null : find(token.from);
  const whole = await sendingOf(image, find(token.to), from, signal);
  return prepare(image, { ...whole, signal }, token.offset, whole.begin);
}

export async function prepare(
  image: Image,
  { snapshot, extents, signal }: Omit<Sending, 'begin'> & { signal?: AbortSignal | undefined },
  offset: number,
  { snapshot: to, from }: Pick<Begin, 'snapshot' | 'from'>,
): Promise<Sending> {
  const rest = (stop: AbortSignal | undefined) => after(extents(stop), offset);
  let data = 0;
  for await (const extent of rest(signal)) data += extent.kind === 'data' ? extent.length : 0;
  const { blockSize, size } = image.info();
  const begin: Begin = {
    version: 1,
    size: snapshot === null ? size : image.snapshotInfo(snapshot).size,
    blockSize,
    snapshot: to,
    from,
    resumedAt: offset,
    data,
    history: historyOf(image, snapshot),
  };
  return { begin, extents: rest, snapshot };
}

/** The bytes of the stream, record by record. Progress counts the bytes of data. */
export async function* sendStream(image: Image, sending: Sending, options: LongOptions = {}): AsyncGenerator<Buffer> {
  const { begin, snapshot } = sending;
  const { signal, onProgress } = options;
  const end: End = { records: 0, data: 0, zeros: 0, checksum: 0 };
  const counted = (record: Buffer) => {
    end.records++;
    end.checksum = chained(end.checksum, checksumOf(record));
    return record;
  };
  yield encodeText(RecordType.begin, begin);
  for await (const { offset, length, kind } of sending.extents(signal)) {
    // Over nothing, zeros are what is there already.
    if (kind !== 'data') {
      if (begin.from === null) continue;
      end.zeros += length;
      yield counted(encodeRecord(RecordType.zeros, offset, length, Buffer.alloc(0)));
      continue;
    }
    for (let at = offset; at < offset + length; at += MAX_PAYLOAD) {
      stopWhere(signal);
      const bytes = Buffer.alloc(Math.min(MAX_PAYLOAD, offset + length - at));
      await image.read(bytes, at, snapshot ?? undefined);
      end.data += bytes.length;
      onProgress?.(end.data, begin.data);
      yield counted(encodeRecord(RecordType.data, at, bytes.length, bytes));
    }
  }
  // A snapshot that was deleted, and another one taken under its name, meanwhile.
  if (snapshot !== null && image.snapshotInfo(snapshot).identity !== begin.snapshot?.identity) {
    throw new PcowError('PCOW_BUSY', `${snapshot} is not the snapshot any more that it was when the stream began`);
  }
  yield encodeText(RecordType.end, end);
}

export function namedOf(image: Image, snapshot: string): Named {
  return { name: snapshot, identity: image.snapshotInfo(snapshot).identity };
}

function stopWhere(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw new PcowError('PCOW_CANCELLED', 'sending was stopped; the receiver can go on from what it has', {
      cause: signal.reason,
    });
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

/** The ancestors of a snapshot in this image. */
function historyOf(image: Image, snapshot: string | null): Named[] {
  const known = image.snapshots({ countData: false });
  const history: Named[] = [];
  let next =
    snapshot === null
      ? known.find(({ current }) => current)?.name
      : known.find(({ name }) => name === snapshot)?.parent;
  while (next !== undefined && next !== null && history.length < HISTORY) {
    const found = known.find(({ name }) => name === next);
    if (found === undefined) break;
    history.push({ name: found.name, identity: found.identity });
    next = found.parent;
  }
  return history;
}
