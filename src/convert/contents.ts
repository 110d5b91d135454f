/** The flat content of an image, a snapshot or a raw file, for comparing and measuring. */
import { open } from 'node:fs/promises';
import { type Image, nextData, PcowError } from '../engine/index.js';

/** A part of some contents. */
export interface Range {
  /** Bytes. */
  offset: number;
  /** Bytes. */
  length: number;
  /** false: the range reads as zeros, and need not be read. */
  data: boolean;
}

/** Content that can be read flat, in whatever format it is stored: see openContents(). */
export interface Contents {
  /** Bytes. */
  readonly size: number;
  /** All ranges, in ascending order. */
  ranges(signal?: AbortSignal): AsyncIterable<Range>;
  /** Fills the buffer. The range must be before the end. */
  read(buffer: Uint8Array, offset: number): Promise<void>;
  /** Releases the image or file. */
  close(): Promise<void>;
}

/**
 * The content of a snapshot, or of the layer that is active now. It is always this layer, whatever
 * happens to the image meanwhile; if the layer is removed (deleted, rolled back, committed),
 * reading fails. close() closes the image.
 */
export function imageContents(image: Image, snapshot: string | null): Contents {
  const { id, size } = layerOf(image, snapshot);
  return {
    size,
    async *ranges(signal) {
      let end = 0;
      for await (const { offset, length, kind } of image.map({ snapshot: id, signal })) {
        if (offset >= size) break;
        end = Math.min(offset + length, size);
        yield { offset, length: end - offset, data: kind === 'data' };
      }
      if (end < size) throw shortRead(image.info().path);
    },
    async read(buffer, offset) {
      const count = await image.read(buffer, offset, id);
      if (count < buffer.length) throw shortRead(image.info().path);
    },
    close: () => image.close(),
  };
}

function layerOf(image: Image, snapshot: string | null): { id: number; size: number } {
  if (snapshot !== null) return image.snapshotInfo(snapshot);
  const active = image.layers().at(-1);
  if (active === undefined) throw new Error('an image has no active layer');
  return active;
}

/** The content of a regular file, with its holes. */
export async function fileContents(path: string): Promise<Contents> {
  const handle = await open(path);
  const { size } = await handle.stat().catch(async (error: unknown) => {
    await handle.close();
    throw error;
  });
  return {
    size,
    // Asking for holes takes no time; others of its kind do wait.
    // eslint-disable-next-line @typescript-eslint/require-await
    async *ranges(signal) {
      for (let at = 0; at < size;) {
        if (signal?.aborted) {
          throw new PcowError('PCOW_CANCELLED', `reading ${path} was stopped`, {
            cause: signal.reason,
          });
        }
        const { start, end } = nextData(handle.fd, at, size);
        if (start > at) yield { offset: at, length: start - at, data: false };
        if (end > start) yield { offset: start, length: end - start, data: true };
        at = end;
      }
    },
    async read(buffer, offset) {
      for (let done = 0; done < buffer.length;) {
        const { bytesRead } = await handle.read(buffer, done, buffer.length - done, offset + done);
        if (bytesRead === 0) throw shortRead(path);
        done += bytesRead;
      }
    },
    close: () => handle.close(),
  };
}

function shortRead(path: string): PcowError {
  return new PcowError('PCOW_IO', `${path} became shorter during the read`);
}
