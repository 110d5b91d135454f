/** The streams for programs outside of Pcow. docs/stream.md describes their contents. */
import type { Image } from '../engine/image.js';
import type { LongOptions } from '../engine/types.js';
import { checkOptions, checkPath } from '../engine/validate.js';
import { exportStream, importStream, type Imported } from './archive.js';
import {
  abandonReceiving as abandon,
  receive as receiveInto,
  type Received,
  resumeTokenOf,
} from './receive.js';
import { formatToken, parseToken } from './resume-token.js';
import { resumedSending, sendingOf, sendStream } from './send.js';

export type { Imported, Received };

/** For send. */
export interface SendOptions extends LongOptions {
  /**
   * Send only what changed since this snapshot, which the receiver must have. Default: send
   * everything.
   */
  from?: string | undefined;
}

/** For receive. */
export interface ReceiveOptions extends LongOptions {
  /**
   * Drop what the image holds beyond its snapshots, and an unfinished receive of another stream.
   */
  force?: boolean | undefined;
}

/**
 * A snapshot as a stream of bytes, as “pcow send” writes it. The image may be in use, and must stay
 * open until the end of the stream. Errors: PCOW_NOT_FOUND for a snapshot, PCOW_CANCELLED,
 * PCOW_BUSY if the snapshot was replaced in the meantime.
 */
export async function* send(
  image: Image,
  snapshot: string,
  options: SendOptions = {},
): AsyncGenerator<Buffer, void> {
  checkOptions('the options of send', options, ['from', 'signal', 'onProgress']);
  const { from, ...long } = options;
  yield* sendStream(image, await sendingOf(image, snapshot, from ?? null, long.signal), long);
}

/**
 * The part of a stream that is missing at the receiver with this resumeToken(). Errors as for
 * send(), and PCOW_INVALID for the token.
 */
export async function* resumeSending(
  image: Image,
  token: string,
  options: LongOptions = {},
): AsyncGenerator<Buffer, void> {
  checkOptions('the options of resumeSending', options, ['signal', 'onProgress']);
  yield* sendStream(image, await resumedSending(image, parseToken(token), options.signal), options);
}

/**
 * Receives a stream of send(), and takes the snapshot that it contains. Makes the image file if
 * there is none and the stream is complete. If the stream breaks off, the image keeps its former
 * snapshots, and resumeToken() says what has arrived. Errors: PCOW_CORRUPT, PCOW_IO if it broke
 * off, PCOW_NOT_FOUND if the snapshot below is missing, PCOW_EXISTS, PCOW_BUSY, PCOW_LOCKED,
 * PCOW_NO_SPACE, PCOW_CANCELLED.
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

/**
 * What an image has of a stream that broke off, for resumeSending(); null if there is no such
 * stream.
 */
export async function resumeToken(path: string): Promise<string | null> {
  checkPath('the path of the image', path);
  const token = await resumeTokenOf(path);
  return token && formatToken(token);
}

/**
 * Gives up a stream that broke off: the image is as it was before the stream. Returns the name of
 * the unfinished snapshot, or null.
 */
export async function abandonReceiving(path: string): Promise<string | null> {
  checkPath('the path of the image', path);
  return abandon(path);
}

/**
 * An image, its bases, and all snapshots, as one stream of bytes. The image must stay open until
 * the end of the stream.
 */
export async function* exportImage(
  image: Image,
  options: LongOptions = {},
): AsyncGenerator<Buffer, void> {
  checkOptions('the options of exportImage', options, ['signal', 'onProgress']);
  yield* exportStream(image, options);
}

/**
 * Makes an image that stands on no base from a stream of exportImage(). It appears only when it is
 * complete. Errors: PCOW_EXISTS, PCOW_CORRUPT, PCOW_IO.
 */
export async function importImage(
  source: AsyncIterable<Uint8Array>,
  path: string,
  options: LongOptions = {},
): Promise<Imported> {
  checkPath('the path of the new image', path);
  checkOptions('the options of importImage', options, ['signal', 'onProgress']);
  return importStream(source, path, options);
}
