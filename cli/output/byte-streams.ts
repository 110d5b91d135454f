/** Binary streams: standard input and output, or a file. */
import { createWriteStream, fstatSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { Socket } from 'node:net';
import { addAbortSignal, type Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { isatty } from 'node:tty';
import { isPcowError, PcowError } from '../../src/engine/errors.js';
import { Failure } from './errors.js';
import { outputFailure } from './stdout.js';
import { quote } from '../../src/engine/quote.js';
import { explain } from '../../src/engine/system-errors.js';

const STDOUT = 1;

/**
 * Writes everything to standard output. If the reader ends early that is an error, unlike for a
 * list.
 */
export async function writeToStdout(
  bytes: AsyncIterable<Buffer>,
  signal: AbortSignal,
): Promise<void> {
  if (isatty(STDOUT)) {
    throw new Failure(
      'PCOW_USAGE',
      'refusing to write a binary stream to a terminal',
      'use a pipe (pcow send … | ssh HOST pcow receive …), or redirect it to a file with >',
    );
  }
  const status = fstatSync(STDOUT);
  if (status.isFIFO() || status.isSocket()) {
    // process.stdout would block this process while the reader is slow, and Ctrl-C would have no
    // effect.
    await pumped(bytes, new Socket({ fd: STDOUT, readable: false, writable: true }), signal);
  } else {
    // process.stdout treats a partial write (to an almost full disk) as complete.
    await pumped(bytes, createWriteStream('', { fd: STDOUT, autoClose: false }), signal);
  }
}

/** Writes to an empty file. */
export async function writeToFile(file: string, bytes: AsyncIterable<Buffer>): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    for await (const piece of bytes) await handle.writeFile(piece);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Reads standard input, or a file if `file` is given. Aborting ends it with PCOW_CANCELLED. */
export async function* readFrom(file: string | null, signal: AbortSignal): AsyncGenerator<Buffer> {
  if (file === null && isatty(0)) {
    throw new Failure(
      'PCOW_USAGE',
      'expected a stream on standard input',
      'pcow send … | pcow receive IMAGE',
    );
  }
  const source = file === null ? process.stdin : await fileSource(file);
  try {
    for await (const piece of addAbortSignal(signal, source)) yield piece as Buffer;
  } catch (error) {
    const reason = stopped(error, signal);
    throw file === null ? inputFailure(reason) : reason;
  }
}

function inputFailure(error: unknown): unknown {
  const known = explain(error, 'standard input');
  return known === null ? error : new Failure(known.code, known.message, known.hint);
}

async function fileSource(file: string): Promise<Readable> {
  const handle = await open(file).catch((error: unknown) => {
    throw fileFailure(error, file);
  });
  return handle.createReadStream({ highWaterMark: 1 << 20 });
}

async function pumped(
  bytes: AsyncIterable<Buffer>,
  target: Writable,
  signal: AbortSignal,
): Promise<void> {
  try {
    await pipeline(bytes, target, { signal });
  } catch (error) {
    const reason = stopped(error, signal);
    throw isPcowError(reason) ? reason : outputFailure(reason);
  }
}

function stopped(error: unknown, signal: AbortSignal): unknown {
  if (isPcowError(error)) {
    return error;
  }
  if (signal.aborted) {
    return new PcowError('PCOW_CANCELLED', 'the stream was stopped', { cause: error });
  }
  if (error instanceof Error && 'code' in error && error.code === 'EPIPE') {
    return new PcowError('PCOW_IO', 'the receiver stopped reading the stream: see its message', {
      cause: error,
    });
  }
  return error;
}

function fileFailure(error: unknown, file: string): unknown {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  switch (code) {
    case 'ENOENT':
      return new Failure('PCOW_NOT_FOUND', `there is no ${quote(file)}`, 'check the path');
    case 'EACCES':
      return new Failure('PCOW_PERMISSION', `this user may not use ${quote(file)}`);
    default:
      return error;
  }
}
