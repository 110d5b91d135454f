/**
 * The receiving side of a stream (docs/stream.md). Changes go into the active layer, and only over the snapshot that they were
 * made from. The snapshot is taken when everything has arrived; until then a receipt beside the image says what is there.
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

/** What receive() has done. */
export interface Received {
  /** The name of the snapshot that is there now. */
  snapshot: string;
  /** The name of the snapshot that the changes went onto; null: nothing. */
  from: string | null;
  /** Bytes of data that arrived. */
  data: number;
  /** Bytes that arrived as zeros. */
  zeros: number;
  /** Bytes of the image that had arrived before. */
  resumedAt: number;
}

/** Bytes of data between two syncs: what a receiver that is killed has to be sent again, at most. */
const CHECKPOINT = 32 << 20;

interface Receiving extends LongOptions {
  force?: boolean | undefined;
  /** Opens the image by calling `open`: once, or again where another process has it and is waited for. Default: once. */
  opening?: (<T>(open: () => Promise<T>) => Promise<T>) | undefined;
}

/** Receives one stream into the image file, which is made where there is none. */
export function receive(source: AsyncIterable<Uint8Array>, file: string, options: Receiving = {}): Promise<Received> {
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
      ? new PcowError('PCOW_INVALID', 'this is an export of a whole image: pcow import takes it')
      : corruptStream('it does not begin with its beginning');
  }
  const begin = parseBegin(first.payload);
  const { snapshot } = begin;
  if (snapshot === null) throw corruptStream('it names no snapshot');

  const made = await makeWhereMissing(file, begin);
  const { image } = await opening(() => openWithReceipt(file));
  try {
    const taken = await takeUp(image, file, begin, made, force);
    const resumedAt = taken.offset;
    let unsynced = 0;
    const keep = async () => {
      await image.sync();
      await writeReceipt(file, taken);
      unsynced = 0;
    };
    await keep();
    let found;
    try {
      found = await applyStream(image, begin, reader, {
        ...long,
        onApplied: async (end, written) => {
          unsynced += written;
          taken.offset = Math.max(taken.offset, end);
          if (unsynced >= CHECKPOINT) await keep();
        },
      });
    } catch (error) {
      // What has arrived is sound. A disk that fails now has its say at the next opening.
      await keep().catch(() => undefined);
      throw error;
    }
    await image.snapshot(snapshot.name, { identity: snapshot.identity, created: new Date(snapshot.created) });
    await removeReceipt(file);
    const { data, zeros } = found;
    return { snapshot: snapshot.name, from: begin.from?.name ?? null, data, zeros, resumedAt };
  } finally {
    await image.close();
  }
}

/** What an image has of a stream that was begun; null where there is none. */
export async function resumeTokenOf(file: string): Promise<ResumeToken | null> {
  const { receipt } = await look(file);
  const snapshot = receipt?.begin.snapshot;
  if (!receipt || !snapshot) return null;
  return { from: receipt.begin.from?.identity ?? null, to: snapshot.identity, offset: receipt.offset };
}

/** Gives up a stream that was begun: the image is as before it. Returns the name of the snapshot that will not come, or null. */
export async function abandonReceiving(file: string): Promise<string | null> {
  if ((await look(file)).receipt === null) return null;
  const { image, receipt } = await openWithReceipt(file);
  try {
    // Somebody was quicker to open it: what the image holds now is theirs.
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
      `${file} does not exist, and the stream holds only what comes after ${begin.from?.name ?? 'a part that is missing'}: ` +
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

/** Opens the image for writing, with a receipt that goes on to count, whoever ends this process in between. */
async function openWithReceipt(file: string): Promise<{ image: Image; receipt: Receipt | null }> {
  const { receipt, generation } = await look(file);
  if (receipt !== null) await writeReceipt(file, { ...receipt, generation, opening: await thisProcess() });
  const image = await Image.open(file, { write: true });
  try {
    const now = image.info().generation;
    // Somebody may have opened it since we looked: then the receipt stays as it is, and does not count any more.
    if (receipt === null || now !== generation + 1) return { image, receipt: null };
    await writeReceipt(file, { ...receipt, generation: now, opening: null });
    return { image, receipt };
  } catch (error) {
    await image.close();
    throw error;
  }
}

/** As the engine writes it into the superblock. */
async function thisProcess(): Promise<Opener> {
  const status = await readFile('/proc/self/stat', 'utf8');
  // The second field, the command, is in parentheses and may hold anything.
  const fields = status.slice(status.lastIndexOf(')') + 2).split(' ');
  return { pid: process.pid, startTime: Number(fields[19]) };
}

/** Checks that the stream goes on where the image stands, and makes the active layer ready for it. */
async function takeUp(image: Image, file: string, begin: Begin, made: boolean, force: boolean): Promise<Receipt> {
  const info = image.info();
  const { uuid, generation } = info;
  const fresh: Receipt = { uuid, generation, begin, offset: 0, made };
  const receipt = await readReceipt(file, info);
  if (receipt !== null) {
    const same =
      receipt.begin.snapshot?.identity === begin.snapshot?.identity &&
      receipt.begin.from?.identity === begin.from?.identity;
    if (same) {
      if (begin.resumedAt > receipt.offset) {
        throw missing(
          `${file} has ${begin.snapshot?.name ?? ''} up to byte ${receipt.offset}, and the stream goes on at ${begin.resumedAt} only`,
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
      `${file} has nothing of ${begin.snapshot?.name ?? ''}, and the stream goes on at byte ${begin.resumedAt}`,
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
    throw new PcowError('PCOW_EXISTS', `${file} has that snapshot already, as ${same.name}`);
  }
  if (known.some(({ name }) => name === snapshot?.name)) {
    throw new PcowError(
      'PCOW_EXISTS',
      `${file} has another snapshot called ${snapshot?.name ?? ''}: delete one of the two, here or at the sender`,
    );
  }
}

/** Empties the active layer on the snapshot that the stream stands on. Nothing that is no snapshot is lost without `force`. */
async function standOn(image: Image, file: string, begin: Begin, force: boolean): Promise<void> {
  const { from } = begin;
  const empty = await activeIsEmpty(image);
  const known = image.snapshots({ countData: false });
  if (from === null) {
    if (known.length > 0 || image.info().base !== null || !empty) {
      throw new PcowError(
        'PCOW_EXISTS',
        `${file} holds something already, and the stream holds all of ${begin.snapshot?.name ?? ''}: receive it into a new image, or send what changed ` +
          'since a snapshot that both have (pcow send --from)',
      );
    }
  } else {
    const own = ownSnapshot(image, from.identity);
    if (own === undefined) throw missing(sentenceOfMissing(file, begin, known));
    if (!empty && !force) {
      throw new PcowError(
        'PCOW_BUSY',
        `${file} holds changes that are in no snapshot, and receiving would drop them: take a snapshot, or drop them with --force`,
      );
    }
    if (!empty || !own.current || image.info().size !== own.size) await image.rollback(own.name);
  }
  const { size } = image.info();
  if (size > begin.size) {
    throw new PcowError('PCOW_INVALID', `${file} has ${size} bytes, more than what is sent (${begin.size})`);
  }
  if (size < begin.size) await image.resize(begin.size);
}

function sentenceOfMissing(file: string, { from, snapshot, history }: Begin, known: SnapshotInfo[]): string {
  const name = from?.name ?? '';
  const common = history.find(({ identity }) => known.some((own) => own.identity === identity));
  const impostor = known.some((own) => own.name === name) ? ` (it has another one of that name)` : '';
  const sentence = `${file} has no snapshot ${name}${impostor}, which the changes of ${snapshot?.name ?? ''} stand on`;
  if (common === undefined) return `${sentence}: send ${name} first`;
  return `${sentence}; the newest that both have is ${common.name}: send ${name} --from ${common.name} first`;
}

function missing(why: string): PcowError {
  return new PcowError('PCOW_NOT_FOUND', why);
}

function ownSnapshot(image: Image, identity: string): SnapshotInfo | undefined {
  return image.snapshots({ countData: false }).find((snapshot) => snapshot.identity === identity);
}

/** Nobody else changes the image: it is open for writing here. */
async function activeIsEmpty(image: Image): Promise<boolean> {
  for await (const { kind } of image.map({ depths: { first: 0, end: 1 } })) {
    if (kind !== 'hole') return false;
  }
  return true;
}
