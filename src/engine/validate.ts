/**
 * Validates arguments, with messages that name the mistake. The addon trusts the types of validated
 * values. The engine itself refuses what depends on the image (a size below its base's, a name that
 * exists).
 */
import { PcowError } from './errors.js';

/** Bytes. */
export const MIN_SIZE = 64 * 1024;
/** Bytes: 64 TiB. */
export const MAX_SIZE = 2 ** 46;
/** Bytes: every size is a multiple of this. */
export const SIZE_UNIT = 4096;
export const MIN_BLOCK_SIZE = 4096;
export const MAX_BLOCK_SIZE = 2 * 1024 * 1024;
/** Bytes of UTF-8. */
export const MAX_NAME_LENGTH = 255;

function invalid(message: string): never {
  throw new PcowError('PCOW_INVALID', message);
}

/** Shows a value in a message, without newlines and control characters. */
function show(value: unknown): string {
  if (typeof value === 'string') {
    return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  }
  if (value === null || ['number', 'boolean', 'undefined', 'bigint'].includes(typeof value)) {
    return String(value);
  }
  return Array.isArray(value) ? 'an array' : `a value of type ${typeof value}`;
}

/**
 * Rejects anything but an object with only these keys, so that a misspelled option is never
 * ignored.
 */
export function checkOptions(what: string, options: unknown, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    invalid(`${what} must be an object, not ${show(options)}`);
  }
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue;
    const meant = known.find((name) => name.toLowerCase() === key.toLowerCase());
    invalid(
      meant === undefined
        ? `${what} has no option ${show(key)}; known are ${known.join(', ')}`
        : `misspelled option ${show(key)} of ${what}: it should be ${show(meant)}`,
    );
  }
}

export function checkFlag(what: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'boolean')
    invalid(`${what} must be true or false, not ${show(value)}`);
}

const SMALLEST_LIMIT = 64 << 20;

/** Bytes that a lazy image keeps. With less, readers would push out what others have just needed. */
export function checkLimit(value: unknown): asserts value is number {
  if (!Number.isSafeInteger(value) || (value as number) < SMALLEST_LIMIT)
    invalid(`the limit of a lazy image is a number of bytes, at least 64 MiB, not ${show(value)}`);
}

/** 8 bytes for each block. */
export function checkEntries(value: unknown): asserts value is Uint8Array {
  checkBuffer(value);
  if (value.length % 8 !== 0) invalid(`a list of blocks has 8 bytes for each, not ${value.length}`);
}

export function checkPath(what: string, value: unknown): asserts value is string {
  if (typeof value !== 'string') invalid(`${what} must be a string, not ${show(value)}`);
  if (value === '') invalid(`${what} is empty`);
  if (value.includes('\0')) invalid(`${what} ${show(value)} contains a NUL character`);
}

/** A valid size of an image, in bytes. */
export function checkSize(value: unknown): asserts value is number {
  if (typeof value !== 'number') invalid(`the size must be a number of bytes, not ${show(value)}`);
  if (Number.isNaN(value)) invalid('the size is not a number');
  if (value < 0) invalid(`the size ${value} is negative`);
  if (value === 0) invalid('the size is zero; the smallest image has 65536 bytes (64 KiB)');
  if (value > MAX_SIZE) {
    throw new PcowError(
      'PCOW_TOO_LARGE',
      `the size ${value} is over the limit of ${MAX_SIZE} bytes (64 TiB)`,
    );
  }
  if (!Number.isInteger(value)) invalid(`the size ${value} is not a whole number of bytes`);
  if (value < MIN_SIZE)
    invalid(`the size ${value} is too small; the smallest image has ${MIN_SIZE} bytes (64 KiB)`);
  if (value % SIZE_UNIT !== 0) {
    const up = Math.ceil(value / SIZE_UNIT) * SIZE_UNIT;
    invalid(`the size ${value} is not a multiple of ${SIZE_UNIT} bytes; the next one is ${up}`);
  }
}

/** A valid block size, in bytes. */
export function checkBlockSize(value: unknown): asserts value is number {
  if (typeof value !== 'number')
    invalid(`the block size must be a number of bytes, not ${show(value)}`);
  if (!Number.isInteger(value) || value <= 0 || !Number.isInteger(Math.log2(value))) {
    invalid(`the block size ${value} is not a power of two`);
  }
  if (value < MIN_BLOCK_SIZE || value > MAX_BLOCK_SIZE) {
    invalid(
      `the block size ${value} is not between ${MIN_BLOCK_SIZE} (4 KiB) and ${MAX_BLOCK_SIZE} (2 MiB)`,
    );
  }
}

/** A valid name of a snapshot. */
export function checkSnapshotName(value: unknown): asserts value is string {
  if (typeof value !== 'string') invalid(`a snapshot's name must be a string, not ${show(value)}`);
  if (value === '') invalid("a snapshot's name is empty");
  if (value === '.' || value === '..') invalid(`a snapshot can't be named ${show(value)}`);
  if (/\p{Surrogate}/u.test(value))
    invalid(`the snapshot name ${show(value)} is not well-formed Unicode`);
  const bytes = Buffer.byteLength(value);
  if (bytes > MAX_NAME_LENGTH) {
    invalid(`the snapshot name ${show(value)} has ${bytes} bytes; the limit is ${MAX_NAME_LENGTH}`);
  }
  const bad = FORBIDDEN_IN_NAMES.exec(value)?.[0];
  if (bad !== undefined) {
    invalid(
      `the snapshot name ${show(value)} contains ${describeCharacter(bad)}; not allowed are "/", "@", spaces, newlines and control characters`,
    );
  }
}

/**
 * The characters that docs/format.md forbids in names; check_snapshot_name() of the engine has the
 * same rule.
 */
// eslint-disable-next-line no-control-regex -- they are what it is about
export const FORBIDDEN_IN_NAMES = /[/@\u0000-\u0020\u007f]/u;

function describeCharacter(character: string): string {
  if (character === '\0') return 'a NUL character';
  if (character === '\n') return 'a newline';
  if (character === ' ') return 'white space';
  return character < ' ' || character === '\u007f' ? 'a control character' : show(character);
}

/** The layer to read: a snapshot's name, or an id. */
export function checkLayerChoice(value: unknown): asserts value is string | number {
  if (typeof value === 'number') checkLayer(value);
  else checkSnapshotName(value);
}

/** Milliseconds: the range of a signed 64-bit number of nanoseconds around 1970. */
const FARTHEST = 9_223_372_036_854;

/** A time that the format can store for a snapshot (docs/format.md). */
export function checkCreated(value: unknown): asserts value is Date {
  if (!(value instanceof Date) || !(Math.abs(value.getTime()) <= FARTHEST)) {
    invalid(
      `a snapshot's time must be a date between 1677-09-22 and 2262-04-11, not ${show(String(value))}`,
    );
  }
}

/** The identity of a snapshot's content: 16 hex digits, not all zero. */
export function checkIdentity(value: unknown): asserts value is string {
  if (typeof value !== 'string' || !/^[0-9a-f]{16}$/.test(value) || /^0+$/.test(value)) {
    invalid(`a snapshot's identity must be 16 hex digits, and not zero: ${show(value)}`);
  }
}

export function checkOffset(value: unknown): asserts value is number {
  if (typeof value !== 'number' || !Number.isInteger(value)) {
    invalid(`the offset must be a whole number of bytes, not ${show(value)}`);
  }
  if (value < 0) invalid(`the offset ${value} is negative`);
  if (value > MAX_SIZE) {
    throw new PcowError(
      'PCOW_TOO_LARGE',
      `the offset ${value} is over the limit of ${MAX_SIZE} bytes (64 TiB)`,
    );
  }
}

/** The length of a range that starts at a checked offset. */
export function checkLength(value: unknown): asserts value is number {
  if (typeof value !== 'number' || !Number.isInteger(value)) {
    invalid(`the length must be a whole number of bytes, not ${show(value)}`);
  }
  if (value < 0) invalid(`the length ${value} is negative`);
  if (value > MAX_SIZE) {
    throw new PcowError(
      'PCOW_TOO_LARGE',
      `the length ${value} is over the limit of ${MAX_SIZE} bytes (64 TiB)`,
    );
  }
}

export function checkBuffer(value: unknown): asserts value is Uint8Array {
  if (!(value instanceof Uint8Array))
    invalid(`the buffer must be a Uint8Array, not ${show(value)}`);
}

/** The id of a layer: a positive whole number. */
export function checkLayer(value: unknown): asserts value is number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value <= 0) {
    invalid(`a layer's id must be a positive whole number, not ${show(value)}`);
  }
}

export function checkSignal(value: unknown): asserts value is AbortSignal | undefined {
  if (value !== undefined && !(value instanceof AbortSignal)) {
    invalid('the option "signal" must be an AbortSignal');
  }
}

/** A range of depths in a chain. */
export function checkDepths(value: unknown): asserts value is { first: number; end: number } {
  checkOptions('the option "depths"', value, ['first', 'end']);
  const { first, end } = value as Record<string, unknown>;
  if (!Number.isSafeInteger(first) || !Number.isSafeInteger(end) || (first as number) < 0) {
    invalid(`the depths must be two whole numbers, not ${show(first)} and ${show(end)}`);
  }
  if ((end as number) < (first as number))
    invalid(`the depths end (${show(end)}) before they begin (${show(first)})`);
}
