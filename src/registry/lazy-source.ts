/**
 * The source of a lazy image (docs/registry.md, "Lazy images"): everything of the artifact but the
 * data blobs, and how to get those. The image file keeps it, so that an image can be used while its
 * registry is away, and so that it stays what it was when it was made.
 */
import path from 'node:path';
import { PcowError } from '../engine/index.js';
import { digestOf } from './digest.js';
import type { HttpOptions } from './http.js';
import type { Blob } from './manifest.js';
import { formatReference, parseReference } from './reference.js';
import type { BlobReader, ReadableStore } from './store.js';
import { encodeTrace, parseTrace, type Touch } from './trace.js';

/** Where the data blobs are. */
export interface Origin {
  /** With the digest of the manifest. */
  reference: string;
  plainHttp: boolean;
  /** Absolute paths. */
  certificates: string[];
  /** The pieces that are fetched first. */
  trace: Touch[];
  /** The most bytes that are kept of what was fetched; null: everything is. */
  limit: number | null;
}

const MAGIC = Buffer.from('PCOWLAZ\0', 'latin1');
const VERSION = 1;
const HEADER = 16;

/** `reference`: as the user named the image. */
export function originOf(
  reference: string,
  digest: string,
  { plainHttp = false, certificates = [] }: HttpOptions,
  trace: Touch[],
  limit: number | null,
): Origin {
  const parsed = { ...parseReference(reference), digest };
  if (parsed.kind === 'layout') parsed.directory = path.resolve(parsed.directory);
  return {
    reference: formatReference(parsed),
    plainHttp,
    certificates: certificates.map((file) => path.resolve(file)),
    trace,
    limit,
  };
}

/** Keeps what is read through it, for encodeSource(). */
export class Recording implements ReadableStore {
  readonly name: string;
  readonly #blobs = new Map<string, Buffer>();
  #manifest: Buffer | undefined;

  constructor(private readonly store: ReadableStore) {
    this.name = store.name;
  }

  async readManifest(): Promise<Buffer> {
    this.#manifest = await this.store.readManifest();
    return this.#manifest;
  }

  openBlob(blob: Blob): BlobReader {
    const reader = this.store.openBlob(blob);
    return {
      read: async (offset, length) => {
        const bytes = await reader.read(offset, length);
        if (length === blob.size) this.#blobs.set(blob.digest, bytes);
        return bytes;
      },
      close: () => reader.close(),
    };
  }

  /** The manifest, and all blobs that were read whole. */
  encodeSource({ reference, plainHttp, certificates, trace, limit }: Origin): Buffer {
    const contents = [this.#manifest!, ...this.#blobs.values(), encodeTrace(trace)];
    const description = {
      reference,
      plainHttp,
      certificates,
      ...(limit !== null && { limit }),
      contents: contents.map((bytes) => ({ digest: digestOf(bytes), size: bytes.length })),
    };
    return Buffer.concat([headOf(description), ...contents]);
  }
}

function headOf(description: object): Buffer {
  const text = Buffer.from(JSON.stringify(description));
  const header = Buffer.alloc(HEADER);
  MAGIC.copy(header, 0);
  header.writeUInt32LE(VERSION, 8);
  header.writeUInt32LE(text.length, 12);
  return Buffer.concat([header, text]);
}

/** The same source, which SourceStore.parse() has accepted, without a limit. */
export function withoutLimit(source: Buffer): Buffer {
  const end = HEADER + source.readUInt32LE(12);
  const { limit: _limit, ...description } = JSON.parse(
    source.subarray(HEADER, end).toString('utf8'),
  ) as { limit?: number };
  return Buffer.concat([headOf(description), source.subarray(end)]);
}

/** A source as the store of its image, without the data blobs. */
export class SourceStore implements ReadableStore {
  readonly name: string;

  private constructor(
    readonly origin: Origin,
    private readonly manifest: Buffer,
    private readonly blobs: ReadonlyMap<string, Buffer>,
  ) {
    this.name = origin.reference;
  }

  /** Checks everything but the digests, which readers check. `file`: of the image. */
  static parse(bytes: Buffer, file: string): SourceStore {
    const damaged = () =>
      new PcowError('PCOW_CORRUPT', `${file} has a damaged source`, {
        next: 'pull the image again',
      });
    if (bytes.length < HEADER || !bytes.subarray(0, 8).equals(MAGIC)) throw damaged();
    if (bytes.readUInt32LE(8) !== VERSION) {
      throw new PcowError(
        'PCOW_UNSUPPORTED',
        `the source of ${file} has a version that this Pcow does not know`,
        { next: 'use a newer Pcow' },
      );
    }
    let at = HEADER + bytes.readUInt32LE(12);
    const text = descriptionIn(bytes.subarray(HEADER, at).toString('utf8'));
    if (text === null) throw damaged();
    const { contents, ...origin } = text;
    const blobs = new Map<string, Buffer>();
    for (const { digest, size } of contents) {
      if (at + size > bytes.length) throw damaged();
      blobs.set(digest, bytes.subarray(at, (at += size)));
    }
    const last = blobs.get(contents.at(-1)?.digest ?? '');
    const trace = last === undefined ? null : parseTrace(last);
    if (trace === null) throw damaged();
    const pinned = parseReference(origin.reference).digest;
    const manifest = blobs.get(pinned ?? '');
    if (manifest === undefined || digestOf(manifest) !== pinned) throw damaged();
    return new SourceStore({ ...origin, trace }, manifest, blobs);
  }

  readManifest(): Promise<Buffer> {
    return Promise.resolve(this.manifest);
  }

  openBlob({ digest }: Blob): BlobReader {
    const bytes = this.blobs.get(digest);
    return {
      read: (offset, length) =>
        bytes === undefined || offset + length > bytes.length
          ? Promise.reject(
              new PcowError('PCOW_CORRUPT', `the source of ${this.name} lacks ${digest}`),
            )
          : Promise.resolve(bytes.subarray(offset, offset + length)),
      close: () => Promise.resolve(),
    };
  }
}

/** null: it is something else. */
function descriptionIn(text: string): (Omit<Origin, 'trace'> & { contents: Blob[] }) | null {
  let value: Partial<Record<keyof Origin | 'contents', unknown>> | null;
  try {
    value = JSON.parse(text) as typeof value;
  } catch {
    return null;
  }
  const { reference, plainHttp, certificates, limit = null, contents } = value ?? {};
  if (typeof reference !== 'string' || typeof plainHttp !== 'boolean') return null;
  if (limit !== null && !(Number.isSafeInteger(limit) && (limit as number) > 0)) return null;
  if (!isListOf(certificates, (it) => typeof it === 'string')) return null;
  if (!isListOf(contents, isBlob)) return null;
  return {
    reference,
    plainHttp,
    certificates: certificates as string[],
    limit: limit as number | null,
    contents: contents as Blob[],
  };
}

function isListOf(value: unknown, isOne: (item: unknown) => boolean): value is unknown[] {
  return Array.isArray(value) && value.every(isOne);
}

function isBlob(value: unknown): boolean {
  const { digest, size } = (value ?? {}) as Partial<Blob>;
  return typeof digest === 'string' && Number.isSafeInteger(size) && size! >= 0;
}
