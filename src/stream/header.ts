/**
 * The contents of the first and the last record of a stream. They come from outside, so everything
 * in them is checked.
 */
import {
  checkBlockSize,
  checkCreated,
  checkSize,
  checkSnapshotName,
  isPcowError,
} from '../engine/index.js';
import { corruptStream } from './record.js';

/** A snapshot, identified by its content. The name is for messages. */
export interface Named {
  name: string;
  identity: string;
}

export interface Begin {
  version: 1;
  size: number;
  blockSize: number;
  /**
   * The snapshot that exists when the stream has been applied; null: what the image holds beyond
   * its last snapshot (in an archive).
   */
  snapshot: (Named & { created: string }) | null;
  /** In an archive: other snapshots stand on this one, and it is deleted at the end. */
  hidden?: boolean | undefined;
  /** The snapshot to which the changes apply; null: none. */
  from: Named | null;
  /** Ranges before this offset are not in the stream, because the receiver has them. */
  resumedAt: number;
  /** Bytes in the data records that follow. */
  data: number;
  /**
   * The snapshots on which this snapshot stands at the sender, newest first. They tell a receiver
   * what it is missing.
   */
  history: Named[];
  /**
   * Where the stream comes from, if not from an image: a receiver continues it only from the same
   * source. From a registry, the digest of the layer's index.
   */
  source?: string | undefined;
}

/** Characters. */
const LONGEST_SOURCE = 200;

export interface End {
  /** The number of data and zeros records. */
  records: number;
  data: number;
  zeros: number;
  /** Over the checksums of these records, in order. */
  checksum: number;
}

export interface Archive {
  version: 1;
  /** The number of streams that follow. */
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
  if (value.hidden !== undefined && typeof value.hidden !== 'boolean')
    throw corruptStream('a flag is not true or false');
  const { source } = value;
  if (source !== undefined && (typeof source !== 'string' || source.length > LONGEST_SOURCE))
    throw corruptStream('its source is not a text, or too long');
  return {
    version: 1,
    size: value.size,
    blockSize: value.blockSize,
    snapshot:
      value.snapshot === null
        ? null
        : { ...named(value.snapshot), created: created(value.snapshot) },
    from,
    resumedAt: count(value.resumedAt, value.size),
    data: count(value.data, value.size),
    history,
    ...(value.hidden === true && { hidden: true }),
    ...(source !== undefined && { source }),
  };
}

export function parseEnd(payload: Buffer): End {
  const { records, data, zeros, checksum } = objectOf(payload);
  return {
    records: count(records),
    data: count(data),
    zeros: count(zeros),
    checksum: count(checksum, 2 ** 32 - 1),
  };
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
    // reported below
  }
  throw corruptStream('a record that must contain JSON does not');
}

function version(value: Record<string, unknown>): void {
  if (value.version !== 1) throw corruptStream('this version of pcow does not support its version');
}

function named(value: unknown): Named {
  const { name, identity } = (value ?? {}) as Record<string, unknown>;
  checkSnapshotName(name);
  if (typeof identity !== 'string' || !/^[0-9a-f]{16}$/.test(identity))
    throw corruptStream('a snapshot has no identity');
  // In an image, a zero identity means that it is not known, and a new one would replace it.
  if (/^0+$/.test(identity)) throw corruptStream(`the identity of the snapshot ${name} is zero`);
  return { name, identity };
}

/** As Date.toISOString() writes it, also for years before 0 and after 9999. */
const ISO_TIME = /^(?:\d{4}|[+-]\d{6})-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z$/;

function created(value: unknown): string {
  const { created: time } = (value ?? {}) as Record<string, unknown>;
  if (typeof time !== 'string' || !ISO_TIME.test(time) || Number.isNaN(Date.parse(time)))
    throw corruptStream('a snapshot has no time');
  try {
    checkCreated(new Date(time));
  } catch (error) {
    if (isPcowError(error))
      throw corruptStream(`the time of a snapshot, ${time}, cannot be stored in an image`);
    throw error;
  }
  return time;
}

function count(value: unknown, most = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isSafeInteger(value) || (value as number) < 0 || (value as number) > most)
    throw corruptStream('a number is out of range');
  return value as number;
}
