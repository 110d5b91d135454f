/**
 * What a registry and an OCI layout have in common: both contain images outside of this machine.
 */
import { PcowError } from '../engine/index.js';
import { digestOf } from './digest.js';
import { type Blob, corrupt } from './manifest.js';

/** What reading an image needs. */
export interface ReadableStore {
  /** For messages: the image as the user named it. */
  readonly name: string;
  /**
   * The manifest to which the reference leads now. It has not been checked against a digest yet.
   */
  readManifest(): Promise<Buffer>;
  /** Reads a blob, or parts of it in any order. */
  openBlob(blob: Blob): BlobReader;
}

export interface Store extends ReadableStore {
  hasBlob(blob: Blob): Promise<boolean>;
  /** Calls `open` for the bytes, and again if the first try failed. */
  writeBlob(blob: Blob, open: () => AsyncIterable<Uint8Array>): Promise<void>;
  /** Stores the manifest under the tag of the reference. */
  writeManifest(bytes: Buffer): Promise<void>;
  close(): Promise<void>;
}

export interface BlobReader {
  /** Returns exactly these bytes; their content is not checked. */
  read(offset: number, length: number): Promise<Buffer>;
  close(): Promise<void>;
}

/** A small blob, checked against its digest. */
export async function readWhole(store: ReadableStore, blob: Blob): Promise<Buffer> {
  if (blob.size === 0) throw corrupt(store.name, 'a blob is empty');
  const reader = store.openBlob(blob);
  try {
    const bytes = await reader.read(0, blob.size);
    if (digestOf(bytes) !== blob.digest)
      throw corrupt(store.name, `the bytes of its blob ${blob.digest} do not match this digest`);
    return bytes;
  } finally {
    await reader.close();
  }
}

/** The bytes as one chunk. */
export async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes);
}

export function cancelled(what: string, signal: AbortSignal): PcowError {
  return new PcowError('PCOW_CANCELLED', `${what} was stopped`, { cause: signal.reason });
}
