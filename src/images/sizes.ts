/** Parses and formats sizes. Everything is in bytes; the suffixes are powers of 1024. */
import {
  checkBlockSize,
  checkSize,
  MAX_BLOCK_SIZE,
  MAX_SIZE,
  MIN_BLOCK_SIZE,
  MIN_SIZE,
  SIZE_UNIT,
} from '../engine/index.js';
import { PcowError } from '../engine/errors.js';
import { quote } from '../engine/quote.js';
import { checkLimit } from '../engine/validate.js';

const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
const TIB = 1024 * GIB;

const SUFFIXES = { '': 1, K: KIB, M: MIB, G: GIB, T: TIB } as const;
const HOW = 'write bytes, or a number with K, M, G or T: 65536, 64K, 10G, 1.5T';

/**
 * Parses the size of an image. The engine defines the limits; these messages show what the user
 * wrote.
 */
export function parseSize(text: string): number {
  return imageSize(parseBytes(text, 'size'), text);
}

/**
 * Parses a size that is given as `+GROWTH` or `-LESS`, for an image that has `present` bytes, or as
 * a plain size. The limits apply to the result.
 */
export function parseNewSize(text: string, present: number): number {
  if (!/^[+-]/.test(text)) return parseSize(text);
  const change = parseBytes(text.slice(1), 'size');
  if (text.startsWith('+')) return imageSize(present + change, text);
  if (change >= present) {
    throw new PcowError(
      'PCOW_INVALID',
      `nothing is left if ${formatSize(present)} become ${text.slice(1)} smaller`,
      {
        next: HOW,
      },
    );
  }
  return imageSize(present - change, text);
}

function imageSize(bytes: number, text: string): number {
  if (bytes > MAX_SIZE) {
    throw new PcowError('PCOW_TOO_LARGE', `the size ${quote(text)} is over the limit of 64 TiB`);
  }
  if (bytes >= MIN_SIZE && bytes % SIZE_UNIT !== 0) {
    const below = Math.floor(bytes / SIZE_UNIT) * SIZE_UNIT;
    throw new PcowError(
      'PCOW_INVALID',
      `the size ${text} ${/^[+-]/.test(text) ? 'makes it' : 'is'} ${bytes} bytes, which is not a multiple of 4 KiB`,
      {
        next: `the nearest sizes are ${sizeArgument(below)} and ${sizeArgument(below + SIZE_UNIT)}`,
      },
    );
  }
  checkSize(bytes);
  return bytes;
}

/** Parses a block size: a power of two from 4 KiB to 2 MiB. */
export function parseBlockSize(text: string): number {
  const bytes = parseBytes(text, 'block size');
  if (bytes > MIN_BLOCK_SIZE && bytes < MAX_BLOCK_SIZE && !Number.isInteger(Math.log2(bytes))) {
    const below = 2 ** Math.floor(Math.log2(bytes));
    throw new PcowError('PCOW_INVALID', `the block size ${text} is not a power of two`, {
      next: `the nearest block sizes are ${sizeArgument(below)} and ${sizeArgument(below * 2)}`,
    });
  }
  checkBlockSize(bytes);
  return bytes;
}

/** Parses an amount of memory for a virtual machine: whole MiB. */
export function parseMemory(text: string): number {
  const bytes = parseBytes(text, 'memory size');
  if (bytes % MIB !== 0) {
    throw new PcowError('PCOW_INVALID', `the memory size ${text} is not a multiple of 1 MiB`);
  }
  if (bytes > MAX_SIZE) {
    throw new PcowError('PCOW_TOO_LARGE', `the memory size ${text} is over 64 TiB`);
  }
  return bytes;
}

/** Parses how much memory the clean copies of a monitor may take. */
export function parseCacheSize(text: string): number {
  return parseBudget(text, 'clean cache');
}

/** Parses how much memory the clean store of a mount may take; 0: there is none. */
export function parseStoreSize(text: string): number {
  const bytes = text === '0' ? 0 : parseBudget(text, 'clean store');
  checkStoreSize(bytes);
  return bytes;
}

/** Parses how much a lazy image may keep of what it has fetched. */
export function parseLimit(text: string): number {
  const bytes = parseBudget(text, 'limit');
  checkLimit(bytes);
  return bytes;
}

/** What a clean store gives to processes as one, and counts whole: kContent in attach/segment.h. */
const SEGMENT = 64 * MIB;

export function checkStoreSize(bytes: number): void {
  if (bytes === 0 || bytes >= SEGMENT) return;
  throw new PcowError(
    'PCOW_INVALID',
    `a clean store of ${formatSize(bytes)} can hold nothing: its memory is given to guests in pieces of ${formatSize(SEGMENT)}`,
    { next: `write ${sizeArgument(SEGMENT)} or more, or 0 for none` },
  );
}

function parseBudget(text: string, what: string): number {
  const bytes = parseBytes(text, `size of the ${what}`);
  if (bytes > MAX_SIZE) {
    throw new PcowError('PCOW_TOO_LARGE', `the size of the ${what} ${quote(text)} is over 64 TiB`);
  }
  return bytes;
}

/** `10 GiB`, `1.5 TiB`, `4 KiB`, `100 bytes`: at most three digits and a fraction. */
export function formatSize(bytes: number): string {
  for (const [name, unit] of [
    ['TiB', TIB],
    ['GiB', GIB],
    ['MiB', MIB],
    ['KiB', KIB],
  ] as const) {
    if (bytes >= unit) {
      return `${trimmed(bytes / unit)} ${name}`;
    }
  }
  return bytes === 1 ? '1 byte' : `${bytes} bytes`;
}

/** The shortest text that `parseSize` reads back as exactly these bytes: `10G`, `65540K`, `100`. */
export function sizeArgument(bytes: number): string {
  for (const [suffix, unit] of [
    ['T', TIB],
    ['G', GIB],
    ['M', MIB],
    ['K', KIB],
  ] as const) {
    if (bytes >= unit && bytes % unit === 0) {
      return `${bytes / unit}${suffix}`;
    }
  }
  return String(bytes);
}

const BYTES = /^([+-]?)(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?$/i;

/** Whether the text looks like a size. */
export function isSize(text: string): boolean {
  return BYTES.test(text.trim());
}

function parseBytes(text: string, what: string): number {
  const match = BYTES.exec(text.trim());
  if (match?.[2] === undefined) {
    throw new PcowError('PCOW_INVALID', `${quote(text)} is not a ${what}`, { next: HOW });
  }
  if (match[1] === '-') {
    throw new PcowError('PCOW_INVALID', `the ${what} ${text} is negative`, { next: HOW });
  }
  const suffix = (match[3] ?? '').toUpperCase() as keyof typeof SUFFIXES;
  const bytes = Number(match[2]) * SUFFIXES[suffix];
  if (bytes === 0) {
    throw new PcowError('PCOW_INVALID', `the ${what} is zero`, { next: HOW });
  }
  // A number with too many digits becomes infinite, and exceeds the limit.
  if (Number.isFinite(bytes) && !Number.isInteger(bytes)) {
    throw new PcowError('PCOW_INVALID', `the ${what} ${text} is not a whole number of bytes`, {
      next: HOW,
    });
  }
  return bytes;
}

function trimmed(value: number): string {
  return value >= 100
    ? String(Math.round(value))
    : String(Number(value.toFixed(value >= 10 ? 1 : 2)));
}
