/**
 * An image with its bases and all snapshots, as one stream of streams (docs/stream.md); and one
 * self-contained image made from it. Every snapshot is stored as changes on the snapshot that it
 * stands on, those of bases first; then comes what the image holds now.
 */
import { type Extent, Image, type LongOptions, PcowError, throughDraft } from '../engine/index.js';
import { applyStream } from './apply.js';
import { type Archive, type Named, parseArchive, parseBegin } from './header.js';
import { ExportPlan, NO_LAYER, type Part } from './plan.js';
import { corruptStream, encodeText, type RecordReader, RecordType, withRecords } from './record.js';
import { HISTORY, prepare, type Sending, sendStream } from './send.js';

/** The bytes of an export. The caller still owns `image`. */
export async function* exportStream(
  image: Image,
  { signal, onProgress }: LongOptions = {},
): AsyncGenerator<Buffer> {
  const plan = await ExportPlan.make(image);
  try {
    const sendings: [Image, Sending][] = [];
    for (const part of plan.parts) sendings.push([part.image, await sendingOf(part, signal)]);
    const data = sendings.reduce((sum, [, { begin }]) => sum + begin.data, 0);
    const size = plan.parts.at(-1)?.layer.size ?? 0;
    const archive: Archive = {
      version: 1,
      streams: sendings.length,
      size,
      blockSize: image.info().blockSize,
      data,
    };
    yield encodeText(RecordType.archive, archive);
    let done = 0;
    for (const [from, sending] of sendings) {
      yield* sendStream(from, sending, {
        signal,
        onProgress: (sent) => onProgress?.(done + sent, data),
      });
      done += sending.begin.data;
    }
    plan.checkBases();
    yield encodeText(RecordType.archiveEnd, archive);
  } finally {
    await plan.close();
  }
}

/** The result of importImage(). */
export interface Imported {
  /** The number of snapshots. */
  snapshots: number;
  /** The size of the image, bytes. */
  size: number;
  /** Bytes of data that arrived. */
  data: number;
}

/** Makes the image `file`, which must not exist. It gets its name only when it is complete. */
export function importStream(
  source: AsyncIterable<Uint8Array>,
  file: string,
  options: LongOptions = {},
): Promise<Imported> {
  return withRecords(source, (reader) => importRecords(reader, file, options));
}

async function importRecords(
  reader: RecordReader,
  file: string,
  { signal, onProgress }: LongOptions,
): Promise<Imported> {
  const first = await reader.must();
  if (first.type !== RecordType.archive) {
    throw first.type === RecordType.begin
      ? new PcowError('PCOW_INVALID', 'this is a stream of pcow send: use pcow receive')
      : corruptStream('the header record is missing');
  }
  const archive = parseArchive(first.payload);
  return throughDraft(file, {}, (draft) => fill(reader, archive, draft, { signal, onProgress }));
}

async function fill(
  reader: RecordReader,
  archive: Archive,
  draft: string,
  { signal, onProgress }: LongOptions,
): Promise<Imported> {
  let image: Image | null = null;
  let done = 0;
  const hidden: string[] = [];
  try {
    for (let number = 0; number < archive.streams; number++) {
      const record = await reader.must();
      if (record.type !== RecordType.begin) throw corruptStream('a snapshot is missing');
      const begin = parseBegin(record.payload);
      if (image === null) {
        await Image.createInDraft(draft, { size: begin.size, blockSize: archive.blockSize });
        image = await Image.open(draft, { write: true });
      }
      await standOn(image, begin.from);
      if (image.info().size < begin.size) await image.resize(begin.size);
      const { data } = await applyStream(image, begin, reader, {
        signal,
        onProgress: (received) => onProgress?.(done + received, archive.data),
      });
      done += data;
      if (begin.snapshot !== null) {
        const { name, identity, created } = begin.snapshot;
        await image.snapshot(name, { identity, created: new Date(created) });
        if (begin.hidden === true) hidden.push(name);
      }
    }
    const last = await reader.must();
    if (last.type !== RecordType.archiveEnd || image === null)
      throw corruptStream('the end record is missing');
    for (const name of hidden) await image.delete(name, { signal });
    return { snapshots: image.snapshotNames().length, size: image.info().size, data: done };
  } finally {
    await image?.close();
  }
}

/** Goes to the snapshot on which the next part stands: branches begin at older snapshots. */
async function standOn(image: Image, from: Named | null): Promise<void> {
  const known = image.snapshots({ countData: false });
  const current = known.find((snapshot) => snapshot.current);
  if (from === null) {
    if (known.length > 0) throw corruptStream('it contains a second image');
    return;
  }
  // Two snapshots have the same identity if one image of the chain received it from another.
  const same = known.filter(({ identity }) => identity === from.identity);
  const own = same.find(({ name }) => name === from.name) ?? same[0];
  if (own === undefined)
    throw corruptStream(`the snapshot ${from.name} is missing, and other snapshots stand on it`);
  if (own !== current || image.info().size !== own.size) await image.rollback(own.name);
}

async function sendingOf(part: Part, signal: AbortSignal | undefined): Promise<Sending> {
  const { image, layer, snapshot, hidden, from } = part;
  async function* extents(stop: AbortSignal | undefined): AsyncGenerator<Extent> {
    if (layer.id === NO_LAYER) return;
    const own = from?.image === image && from.layer.id !== NO_LAYER;
    yield* own
      ? image.diff(from.layer.id, layer.id, { signal: stop })
      : image.diffToBase(layer.id, { signal: stop });
  }
  return prepare(image, { source: layer, extents, signal }, 0, {
    snapshot: snapshot && { ...snapshot, created: layer.created.toISOString() },
    from: from?.snapshot ?? null,
    history: historyOf(part),
    hidden,
  });
}

/** The snapshots on which a part stands, newest first. */
function historyOf({ from }: Part): Named[] {
  const history: Named[] = [];
  for (let next = from; next?.snapshot && history.length < HISTORY; next = next.from)
    history.push(next.snapshot);
  return history;
}
