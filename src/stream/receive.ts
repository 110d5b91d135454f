/**
 * The receiving side of a stream (docs/stream.md). Changes are written to the active layer, and
 * only over the snapshot from which they were made. The snapshot is taken when everything has
 * arrived. Until then a receipt beside the image records what has arrived.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import {
  exists,
  Image,
  type LongOptions,
  PcowError,
  removeImage,
  removeRemains,
  type SnapshotInfo,
} from '../engine/index.js';
import { applyStream } from './apply.js';
import { type Begin, parseBegin } from './header.js';
import { type Opener, readReceipt, type Receipt, removeReceipt, writeReceipt } from './receipt.js';
import { corruptStream, type RecordReader, RecordType, withRecords } from './record.js';
import type { ResumeToken } from './resume-token.js';

/** The result of receive(). */
export interface Received {
  /** The name of the received snapshot. */
  snapshot: string;
  /** The name of the snapshot to which the changes were applied; null: none. */
  from: string | null;
  /** Bytes of data that arrived. */
  data: number;
  /** Bytes that arrived as zeros. */
  zeros: number;
  /** Bytes of the image that had arrived before. */
  resumedAt: number;
}

/**
 * Bytes of data between two syncs. One sync may be under way while the next data arrives, so a
 * killed receiver needs at most twice this much again.
 */
const CHECKPOINT = 16 << 20;

interface Receiving extends LongOptions {
  force?: boolean | undefined;
  /**
   * Opens the image by calling `open`: once, or repeatedly to wait for another process that has it.
   * Default: once.
   */
  opening?: (<T>(open: () => Promise<T>) => Promise<T>) | undefined;
}

/** Receives one stream into the image file, and makes the file if there is none. */
export function receive(
  source: AsyncIterable<Uint8Array>,
  file: string,
  options: Receiving = {},
): Promise<Received> {
  return withRecords(source, (reader) => receiveRecords(reader, file, options));
}

async function receiveRecords(
  reader: RecordReader,
  file: string,
  { force = false, opening = once, ...long }: Receiving,
): Promise<Received> {
  const first = await reader.must();
  if (first.type !== RecordType.begin) {
    throw first.type === RecordType.archive
      ? new PcowError('PCOW_INVALID', 'this is an export of a whole image: use pcow import')
      : corruptStream('the header record is missing');
  }
  const begin = parseBegin(first.payload);
  const { snapshot } = begin;
  if (snapshot === null) throw corruptStream('it does not name a snapshot');

  const made = await makeWhereMissing(file, begin);
  const { image } = await opening(() => openWithReceipt(file));
  try {
    const taken = await takeUp(image, file, begin, made, force);
    const resumedAt = taken.offset;
    let unsynced = 0;
    const keep = async () => {
      const synced = { ...taken };
      await image.sync();
      await writeReceipt(file, synced);
    };
    await keep();
    let keeping = Promise.resolve();
    let found;
    try {
      found = await applyStream(image, begin, reader, {
        ...long,
        onApplied: async (end, written) => {
          unsynced += written;
          taken.offset = Math.max(taken.offset, end);
          if (unsynced < CHECKPOINT) return;
          await keeping;
          unsynced = 0;
          keeping = keep();
          keeping.catch(() => undefined); // it is awaited before the next one, and at the end
        },
      });
      await keeping;
    } catch (error) {
      // The data that has arrived is valid. If the disk fails now, the next open reports it.
      await keeping.then(keep).catch(() => undefined);
      throw error;
    }
    await image.snapshot(snapshot.name, {
      identity: snapshot.identity,
      created: new Date(snapshot.created),
    });
    await removeReceipt(file);
    const { data, zeros } = found;
    return { snapshot: snapshot.name, from: begin.from?.name ?? null, data, zeros, resumedAt };
  } finally {
    await image.close();
  }
}

/** What an image has of an unfinished stream; null if there is none. */
export async function resumeTokenOf(file: string): Promise<ResumeToken | null> {
  const receipt = await unfinishedOf(file);
  const snapshot = receipt?.begin.snapshot;
  if (!receipt || !snapshot) return null;
  return {
    from: receipt.begin.from?.identity ?? null,
    to: snapshot.identity,
    offset: receipt.offset,
  };
}

/** The same, with the beginning of the stream. */
export async function unfinishedOf(
  file: string,
): Promise<Pick<Receipt, 'begin' | 'offset'> | null> {
  return (await look(file)).receipt;
}

/**
 * Gives up an unfinished stream: the image is as it was before the stream. Returns the name of the
 * unfinished snapshot, or null.
 */
export async function abandonReceiving(file: string): Promise<string | null> {
  if ((await look(file)).receipt === null) return null;
  const { image, receipt } = await openWithReceipt(file);
  try {
    // Another process opened it first: what the image holds now belongs to that process.
    if (receipt === null) return null;
    const { from } = receipt.begin;
    const own = from === null ? undefined : ownSnapshot(image, from.identity);
    if (own === undefined) await image.discard(0, image.info().size);
    else await image.rollback(own.name);
  } finally {
    await image.close();
  }
  if (receipt.made) await removeImage(file);
  await removeReceipt(file);
  return receipt.begin.snapshot?.name ?? null;
}

function once<T>(open: () => Promise<T>): Promise<T> {
  return open();
}

async function makeWhereMissing(file: string, begin: Begin): Promise<boolean> {
  await removeRemains(path.dirname(file));
  if (await exists(file)) return false;
  if (begin.from !== null || begin.resumedAt > 0) {
    throw new PcowError(
      'PCOW_NOT_FOUND',
      `${file} does not exist, and the stream has only the changes after ${begin.from?.name ?? 'a part that is missing'}: ` +
        `send ${begin.from === null ? 'it from its beginning' : 'that snapshot'} first`,
    );
  }
  await Image.create(file, { size: begin.size, blockSize: begin.blockSize });
  return true;
}

async function look(file: string): Promise<{ receipt: Receipt | null; generation: number }> {
  const image = await Image.open(file);
  try {
    const info = image.info();
    return { receipt: await readReceipt(file, info), generation: info.generation };
  } finally {
    await image.close();
  }
}

/**
 * Opens the image for writing, with a receipt that stays valid even if this process is killed in
 * between.
 */
async function openWithReceipt(file: string): Promise<{ image: Image; receipt: Receipt | null }> {
  const { receipt, generation } = await look(file);
  if (receipt !== null)
    await writeReceipt(file, { ...receipt, generation, opening: await thisProcess() });
  const image = await Image.open(file, { write: true });
  try {
    const now = image.info().generation;
    // Another process may have opened it since look(): then the receipt is left as it is, and is no
    // longer valid.
    if (receipt === null || now !== generation + 1) return { image, receipt: null };
    await writeReceipt(file, { ...receipt, generation: now, opening: null });
    return { image, receipt };
  } catch (error) {
    await image.close();
    throw error;
  }
}

/** This process, as the engine writes it into the superblock. */
async function thisProcess(): Promise<Opener> {
  const status = await readFile('/proc/self/stat', 'utf8');
  // The second field, the command, is in parentheses and may contain anything.
  const fields = status.slice(status.lastIndexOf(')') + 2).split(' ');
  return { pid: process.pid, startTime: Number(fields[19]) };
}

/** Checks that the stream continues what the image has, and prepares the active layer for it. */
async function takeUp(
  image: Image,
  file: string,
  begin: Begin,
  made: boolean,
  force: boolean,
): Promise<Receipt> {
  const info = image.info();
  const { uuid, generation } = info;
  const fresh: Receipt = { uuid, generation, begin, offset: 0, made };
  const receipt = await readReceipt(file, info);
  if (receipt !== null) {
    const same =
      receipt.begin.snapshot?.identity === begin.snapshot?.identity &&
      receipt.begin.from?.identity === begin.from?.identity &&
      receipt.begin.source === begin.source;
    if (same) {
      if (begin.resumedAt > receipt.offset) {
        throw missing(
          `${file} has ${begin.snapshot?.name ?? ''} up to byte ${receipt.offset}, but the stream continues at byte ${begin.resumedAt}`,
        );
      }
      return { ...receipt, generation, begin: { ...begin, resumedAt: 0 } };
    }
    if (!force) {
      throw new PcowError(
        'PCOW_BUSY',
        `${file} has begun to receive ${receipt.begin.snapshot?.name ?? ''}: finish that first (pcow receive --resume-token), ` +
          'or give it up (pcow receive --abort)',
      );
    }
  }
  if (begin.resumedAt > 0) {
    throw missing(
      `${file} has nothing of ${begin.snapshot?.name ?? ''}, but the stream continues at byte ${begin.resumedAt}`,
    );
  }
  checkIsNew(image, file, begin);
  await standOn(image, file, begin, force || receipt !== null);
  return { ...fresh, generation: image.info().generation };
}

function checkIsNew(image: Image, file: string, { snapshot }: Begin): void {
  const known = image.snapshots({ countData: false });
  const same = known.find(({ identity }) => identity === snapshot?.identity);
  if (same !== undefined) {
    throw new PcowError('PCOW_EXISTS', `${file} already has this snapshot, as ${same.name}`);
  }
  if (known.some(({ name }) => name === snapshot?.name)) {
    throw new PcowError(
      'PCOW_EXISTS',
      `${file} has another snapshot named ${snapshot?.name ?? ''}: rename or delete one of the two, here or at the sender`,
    );
  }
}

/**
 * Empties the active layer on the snapshot that the stream stands on. Without `force`, changes that
 * are in no snapshot are not dropped.
 */
async function standOn(image: Image, file: string, begin: Begin, force: boolean): Promise<void> {
  const { from } = begin;
  const empty = await activeIsEmpty(image);
  const known = image.snapshots({ countData: false });
  if (from === null) {
    if (known.length > 0 || image.info().base !== null || !empty) {
      throw new PcowError(
        'PCOW_EXISTS',
        `${file} is not empty, and the stream has all of ${begin.snapshot?.name ?? ''}: receive it into a new image, or send what changed ` +
          'since a snapshot that both have (pcow send --from)',
      );
    }
  } else {
    const own = ownSnapshot(image, from.identity);
    const onBase =
      own === undefined && begin.source !== undefined && (await standsOn(image, from.identity));
    if (own === undefined && !onBase) throw missing(sentenceOfMissing(file, begin, known));
    // Nothing leads back to the base alone.
    if (!empty && (!force || onBase)) {
      throw new PcowError(
        'PCOW_BUSY',
        `${file} has changes that are in no snapshot, and receiving would drop them: take a snapshot, or drop them with --force`,
      );
    }
    if (own !== undefined && (!empty || !own.current || image.info().size !== own.size))
      await image.rollback(own.name);
  }
  const { size } = image.info();
  if (size > begin.size) {
    throw new PcowError(
      'PCOW_INVALID',
      `${file} has ${size} bytes, more than the sent image (${begin.size})`,
    );
  }
  if (size < begin.size) await image.resize(begin.size);
}

/** Whether an image without snapshots stands on a base that is this snapshot. */
async function standsOn(image: Image, identity: string): Promise<boolean> {
  const { base } = image.info();
  if (base === null || image.snapshotNames().length > 0) return false;
  const below = await Image.open(base.resolved);
  try {
    return below.layers().some((layer) => layer.id === base.layer && layer.identity === identity);
  } finally {
    await below.close();
  }
}

function sentenceOfMissing(
  file: string,
  { from, snapshot, history }: Begin,
  known: SnapshotInfo[],
): string {
  const name = from?.name ?? '';
  const common = history.find(({ identity }) => known.some((own) => own.identity === identity));
  const sameName = known.some((own) => own.name === name)
    ? ` (it has another one with that name)`
    : '';
  const sentence = `${file} has no snapshot ${name}${sameName}, which the changes of ${snapshot?.name ?? ''} stand on`;
  if (common === undefined) return `${sentence}: send ${name} first`;
  return `${sentence}; the newest that both have is ${common.name}: send ${name} --from ${common.name} first`;
}

function missing(why: string): PcowError {
  return new PcowError('PCOW_NOT_FOUND', why);
}

function ownSnapshot(image: Image, identity: string): SnapshotInfo | undefined {
  return image.snapshots({ countData: false }).find((snapshot) => snapshot.identity === identity);
}

/** No other process changes the image, because it is open for writing here. */
async function activeIsEmpty(image: Image): Promise<boolean> {
  for await (const { kind } of image.map({ depths: { first: 0, end: 1 } })) {
    if (kind !== 'hole') return false;
  }
  return true;
}
