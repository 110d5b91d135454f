/** What the first and the last record of a stream say. They come from elsewhere, so everything in them is checked. */
import { checkBlockSize, checkCreated, checkSize, checkSnapshotName, isPcowError } from '../engine/index.js';
import { corruptStream } from './record.js';

/** A snapshot by the identity of its content; the name is for messages. */
export interface Named {
  name: string;
  identity: string;
}

export interface Begin {
  version: 1;
  size: number;
  blockSize: number;
  /** The snapshot that is there at the end; null: what the image holds beyond its last one (in an archive). */
  snapshot: (Named & { created: string }) | null;
  /** In an archive: the snapshot is deleted in the end; others stand on it. */
  hidden?: boolean | undefined;
  /** What the changes go on top of; null: nothing. */
  from: Named | null;
  /** Ranges before this offset are not in the stream: the receiver has them. */
  resumedAt: number;
  /** Bytes in data records that are to come. */
  data: number;
  /** What the snapshot stands on at the sender, newest first, so that a receiver can tell what it is missing. */
  history: Named[];
}

export interface End {
  /** Of data and zeros records. */
  records: number;
  data: number;
  zeros: number;
  /** Over the checksums of these records, in their order. */
  checksum: number;
}

export interface Archive {
  version: 1;
  /** How many streams follow. */
  streams: number;
  size: number;
  blockSize: number;
  data: number;
}

export function parseBegin(payload: Buffer): Begin {
  const value = objectOf(payload);
  version(value);
  checkSize(value.size);
  checkBlockSize(value.blockSize);
  const from = value.from === null ? null : named(value.from);
  const history = Array.isArray(value.history) ? value.history.map(named) : [];
  if (value.hidden !== undefined && typeof value.hidden !== 'boolean') throw corruptStream('a flag in it is no flag');
  return {
    version: 1,
    size: value.size,
    blockSize: value.blockSize,
    snapshot: value.snapshot === null ? null : { ...named(value.snapshot), created: created(value.snapshot) },
    from,
    resumedAt: count(value.resumedAt, value.size),
    data: count(value.data, value.size),
    history,
    ...(value.hidden === true && { hidden: true }),
  };
}

export function parseEnd(payload: Buffer): End {
  const { records, data, zeros, checksum } = objectOf(payload);
  return { records: count(records), data: count(data), zeros: count(zeros), checksum: count(checksum, 2 ** 32 - 1) };
}

export function parseArchive(payload: Buffer): Archive {
  const value = objectOf(payload);
  version(value);
  checkSize(value.size);
  checkBlockSize(value.blockSize);
  return {
    version: 1,
    streams: count(value.streams),
    size: value.size,
    blockSize: value.blockSize,
    data: count(value.data),
  };
}

function objectOf(payload: Buffer): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(payload.toString('utf8'));
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  } catch {
    // Said below.
  }
  throw corruptStream('a record that should hold JSON does not');
}

function version(value: Record<string, unknown>): void {
  if (value.version !== 1) throw corruptStream('it is of a version that this pcow does not know');
}

function named(value: unknown): Named {
  const { name, identity } = (value ?? {}) as Record<string, unknown>;
  checkSnapshotName(name);
  if (typeof identity !== 'string' || !/^[0-9a-f]{16}$/.test(identity))
    throw corruptStream('a snapshot has no identity');
  // An image says by it that it knows none; there an invented one would take its place.
  if (/^0+$/.test(identity)) throw corruptStream(`the identity of the snapshot ${name} is zero, which stands for none`);
  return { name, identity };
}

/** As Date.toISOString() writes it, years before 0 and after 9999 too. */
const ISO_TIME = /^(?:\d{4}|[+-]\d{6})-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z$/;

function created(value: unknown): string {
  const { created: time } = (value ?? {}) as Record<string, unknown>;
  if (typeof time !== 'string' || !ISO_TIME.test(time) || Number.isNaN(Date.parse(time)))
    throw corruptStream('a snapshot has no time');
  try {
    checkCreated(new Date(time));
  } catch (error) {
    if (isPcowError(error)) throw corruptStream(`a snapshot is from ${time}, a time that an image has no room for`);
    throw error;
  }
  return time;
}

function count(value: unknown, most = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isSafeInteger(value) || (value as number) < 0 || (value as number) > most)
    throw corruptStream('a number in it can’t be right');
  return value as number;
}
