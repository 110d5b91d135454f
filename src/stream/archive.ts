/**
 * An image with its bases and all its snapshots as one stream of streams (docs/stream.md), and one self-contained image made from
 * it: every snapshot as changes on the one that it stands on, bases' first, then what the image holds now.
 */
import path from 'node:path';
import { Image, type LongOptions, PcowError, throughDraft } from '../engine/index.js';
import { applyStream } from './apply.js';
import { type Archive, type Named, parseArchive, parseBegin } from './header.js';
import { corruptStream, encodeText, RecordReader, RecordType } from './record.js';
import { prepare, type Sending, sendStream } from './send.js';

/** A stream of an export: which opening it is read from, and what it holds. */
interface Part {
  image: Image;
  sending: Sending;
}

/** The bytes of an export. `image` stays the caller's. */
export async function* exportStream(image: Image, { signal, onProgress }: LongOptions = {}): AsyncGenerator<Buffer> {
  const bases = await openBases(image);
  try {
    const parts: Part[] = [];
    const names = new Map<string, string>();
    for (const [opened, snapshots] of wanted(image, bases)) {
      for (const snapshot of snapshots) parts.push(await partOf(opened, snapshot, bases, names, signal));
    }
    const data = parts.reduce((sum, { sending }) => sum + sending.begin.data, 0);
    const { size, blockSize } = image.info();
    const archive: Archive = { version: 1, streams: parts.length, size, blockSize, data };
    yield encodeText(RecordType.archive, archive);
    let done = 0;
    for (const part of parts) {
      yield* sendStream(part.image, part.sending, {
        signal,
        onProgress: (sent) => onProgress?.(done + sent, data),
      });
      done += part.sending.begin.data;
    }
    yield encodeText(RecordType.archiveEnd, archive);
  } finally {
    for (const base of bases.values()) await base.close();
  }
}

/** What importImage() has made. */
export interface Imported {
  /** How many. */
  snapshots: number;
  /** Of the image, bytes. */
  size: number;
  /** Bytes of data that arrived. */
  data: number;
}

/** Makes the image `file`, which must not exist. It appears under its name only when it is complete. */
export async function importStream(
  source: AsyncIterable<Uint8Array>,
  file: string,
  { signal, onProgress }: LongOptions = {},
): Promise<Imported> {
  const reader = new RecordReader(source);
  const first = await reader.must();
  if (first.type !== RecordType.archive) {
    throw first.type === RecordType.begin
      ? new PcowError('PCOW_INVALID', 'this is a stream of pcow send: pcow receive takes it')
      : corruptStream('it does not begin with its beginning');
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
      }
    }
    const last = await reader.must();
    if (last.type !== RecordType.archiveEnd || image === null) throw corruptStream('its end is missing');
    return { snapshots: image.snapshotNames().length, size: image.info().size, data: done };
  } finally {
    await image?.close();
  }
}

/** Branches begin at older snapshots. */
async function standOn(image: Image, from: Named | null): Promise<void> {
  const known = image.snapshots({ countData: false });
  const current = known.find((snapshot) => snapshot.current);
  if (from === null) {
    if (known.length > 0) throw corruptStream('a second image begins in it');
    return;
  }
  const own = known.find(({ identity }) => identity === from.identity);
  if (own === undefined) throw corruptStream(`${from.name} is missing, on which other snapshots stand`);
  if (own !== current || image.info().size !== own.size) await image.rollback(own.name);
}

/** The files of the chain below an image, opened; by their paths. */
async function openBases(image: Image): Promise<Map<string, Image>> {
  const bases = new Map<string, Image>();
  const own = image.info().path;
  try {
    for (const { path: file, snapshot } of image.chain()) {
      if (file !== own && snapshot !== null && !bases.has(file)) bases.set(file, await Image.open(file));
    }
  } catch (error) {
    for (const base of bases.values()) await base.close();
    throw error;
  }
  return bases;
}

/** What is exported, in an order in which everything stands on what came before: of bases their part of the chain. */
function wanted(image: Image, bases: Map<string, Image>): [Image, (string | null)[]][] {
  const below = [...bases.entries()].reverse().map(([file, base]): [Image, string[]] => {
    const links = image.chain().filter((link) => link.path === file);
    return [base, links.flatMap(({ snapshot }) => snapshot ?? []).reverse()];
  });
  return [...below, [image, [...image.snapshotNames(), null]]];
}

/** `names`: of what is exported already, by identity. Two snapshots of the chain may have one name; in one image they can't. */
async function partOf(
  image: Image,
  snapshot: string | null,
  bases: Map<string, Image>,
  names: Map<string, string>,
  signal: AbortSignal | undefined,
): Promise<Part> {
  const chain = image.chain(snapshot ?? undefined);
  const depth = chain.findIndex((link, number) => number > 0 && link.snapshot !== null);
  const below = chain[depth];
  let from: Named | null = null;
  if (below?.snapshot != null) {
    const holder = bases.get(below.path) ?? image;
    const { identity } = holder.snapshotInfo(below.snapshot);
    from = { name: names.get(identity) ?? below.snapshot, identity };
  }
  const depths = { first: 0, end: below === undefined ? chain.length : depth };
  const which = snapshot ?? undefined;
  async function* extents(stop: AbortSignal | undefined) {
    for await (const extent of image.map({ snapshot: which, depths, signal: stop })) {
      if (extent.kind !== 'hole') yield extent;
    }
  }
  let to = null;
  if (snapshot !== null) {
    const { identity, created } = image.snapshotInfo(snapshot);
    const name = freeName(snapshot, image.info().path, new Set(names.values()));
    names.set(identity, name);
    to = { name, identity, created: created.toISOString() };
  }
  return { image, sending: await prepare(image, { snapshot, extents, signal }, 0, { snapshot: to, from }) };
}

function freeName(name: string, file: string, taken: Set<string>): string {
  const own = `${path.basename(file, '.pcow')}.${name}`;
  let free = taken.has(name) ? own : name;
  for (let number = 2; taken.has(free); number++) free = `${own}.${number}`;
  return free;
}
