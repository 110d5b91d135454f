/** Streams as a program outside of Pcow uses them: docs/stream.md says what they hold. */
import type { Image } from '../engine/image.js';
import type { LongOptions } from '../engine/types.js';
import { checkOptions, checkPath } from '../engine/validate.js';
import { exportStream, importStream, type Imported } from './archive.js';
import { abandonReceiving as abandon, receive as receiveInto, type Received, resumeTokenOf } from './receive.js';
import { formatToken, parseToken } from './resume-token.js';
import { resumedSending, sendingOf, sendStream } from './send.js';

export type { Imported, Received };

/** For send. */
export interface SendOptions extends LongOptions {
  /** Send only what changed since this snapshot, which the receiver has; default: everything. */
  from?: string | undefined;
}

/** For receive. */
export interface ReceiveOptions extends LongOptions {
  /** Drop what the image holds beyond its snapshots, and another stream that was begun. */
  force?: boolean | undefined;
}

/**
 * A snapshot as a stream of bytes, as “pcow send” writes it. The image may be in use, and must stay open to the end of the stream.
 * Errors: PCOW_NOT_FOUND of a snapshot, PCOW_CANCELLED, PCOW_BUSY where the snapshot was replaced meanwhile.
 */
export async function* send(image: Image, snapshot: string, options: SendOptions = {}): AsyncGenerator<Buffer, void> {
  checkOptions('the options of send', options, ['from', 'signal', 'onProgress']);
  const { from, ...long } = options;
  yield* sendStream(image, await sendingOf(image, snapshot, from ?? null, long.signal), long);
}

/** What is still missing at a receiver whose resumeToken() this is. Errors as those of send(); PCOW_INVALID of the token. */
export async function* resumeSending(
  image: Image,
  token: string,
  options: LongOptions = {},
): AsyncGenerator<Buffer, void> {
  checkOptions('the options of resumeSending', options, ['signal', 'onProgress']);
  yield* sendStream(image, await resumedSending(image, parseToken(token), options.signal), options);
}

/**
 * Takes in a stream of send(), and the snapshot that it holds; the image file is made where there is none and the stream is a whole one. Where it
 * breaks off, the image has its former snapshots, and resumeToken() tells what has arrived. Errors: PCOW_CORRUPT, PCOW_IO where
 * it broke off, PCOW_NOT_FOUND of what it stands on, PCOW_EXISTS, PCOW_BUSY, PCOW_LOCKED, PCOW_NO_SPACE, PCOW_CANCELLED.
 */
export async function receive(
  source: AsyncIterable<Uint8Array>,
  path: string,
  options: ReceiveOptions = {},
): Promise<Received> {
  checkPath('the path of the image', path);
  checkOptions('the options of receive', options, ['force', 'signal', 'onProgress']);
  return receiveInto(source, path, options);
}

/** What an image has of a stream that broke off, for resumeSending(); null where there is nothing of the kind. */
export async function resumeToken(path: string): Promise<string | null> {
  checkPath('the path of the image', path);
  const token = await resumeTokenOf(path);
  return token && formatToken(token);
}

/** Gives up a stream that broke off: the image is as before it. Returns the name of the snapshot that will not come, or null. */
export async function abandonReceiving(path: string): Promise<string | null> {
  checkPath('the path of the image', path);
  return abandon(path);
}

/** An image, the bases that it stands on, and all snapshots, as one stream of bytes. The image must stay open to its end. */
export async function* exportImage(image: Image, options: LongOptions = {}): AsyncGenerator<Buffer, void> {
  checkOptions('the options of exportImage', options, ['signal', 'onProgress']);
  yield* exportStream(image, options);
}

/** Makes an image, which stands on nothing, of what exportImage() gave. It appears only when it is complete. Errors: PCOW_EXISTS, PCOW_CORRUPT, PCOW_IO. */
export async function importImage(
  source: AsyncIterable<Uint8Array>,
  path: string,
  options: LongOptions = {},
): Promise<Imported> {
  checkPath('the path of the new image', path);
  checkOptions('the options of importImage', options, ['signal', 'onProgress']);
  return importStream(source, path, options);
}
