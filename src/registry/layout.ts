/**
 * An OCI image layout: a directory with blobs named by their digests, and an index of the tags. Any
 * number of programs may read it. Programs that write it take the lock of its file `oci-layout`.
 */
import { randomUUID } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { giveName, isPcowError, lockWriter, PcowError, removeName } from '../engine/index.js';
import { digestOf } from './digest.js';
import {
  ARTIFACT_TYPE,
  type Blob,
  blobOf,
  corrupt,
  LONGEST_TEXT,
  MANIFEST_TYPE,
} from './manifest.js';
import { formatReference, isDigest, type LayoutReference } from './reference.js';
import { type BlobReader, once, type Store } from './store.js';

const TAG = 'org.opencontainers.image.ref.name';
const INDEX_TYPE = 'application/vnd.oci.image.index.v1+json';
const LAYOUT = JSON.stringify({ imageLayoutVersion: '1.0.0' });
/** Milliseconds. */
const LOCK_LIMIT = 20_000;

interface Entry {
  mediaType: string;
  digest: string;
  size: number;
  artifactType?: string;
  annotations?: Record<string, string>;
}

export class LayoutStore implements Store {
  readonly name: string;

  constructor(private readonly reference: LayoutReference) {
    this.name = formatReference(reference);
  }

  async readManifest(): Promise<Buffer> {
    const { digest, tag } = this.reference;
    const found = digest ?? (await this.#entryOf(tag)).digest;
    const bytes = await this.#small(this.#blobFile(found), `the manifest ${found}`);
    if (digestOf(bytes) !== found)
      throw corrupt(this.name, 'the bytes of its manifest do not match their digest');
    return bytes;
  }

  async hasBlob({ digest, size }: Blob): Promise<boolean> {
    const status = await stat(this.#blobFile(digest)).catch(() => null);
    return status?.size === size;
  }

  openBlob(blob: Blob): BlobReader {
    return new FileReader(this.name, this.#blobFile(blob.digest), blob);
  }

  async writeBlob({ digest }: Blob, bytes: () => AsyncIterable<Uint8Array>): Promise<void> {
    await this.#make();
    const file = this.#blobFile(digest);
    const draft = `${file}.${randomUUID()}.partial`;
    try {
      await pipeline(bytes(), createWriteStream(draft, { flush: true }));
      await giveName(draft, file, true);
    } catch (error) {
      await removeName(draft).catch(() => undefined);
      throw error;
    }
  }

  async writeManifest(bytes: Buffer): Promise<void> {
    const { digest, size } = blobOf(bytes);
    await this.writeBlob({ digest, size }, () => once(bytes));
    const tag = this.reference.tag ?? 'latest';
    const lock = await this.#lock();
    try {
      const others = (await this.#entries()).filter(
        ({ annotations }) => annotations?.[TAG] !== tag,
      );
      const entry: Entry = {
        mediaType: MANIFEST_TYPE,
        digest,
        size,
        artifactType: ARTIFACT_TYPE,
        annotations: { [TAG]: tag },
      };
      const index = path.join(this.reference.directory, 'index.json');
      const text = JSON.stringify({
        schemaVersion: 2,
        mediaType: INDEX_TYPE,
        manifests: [...others, entry],
      });
      await writeFile(`${index}.partial`, text, { flush: true });
      await giveName(`${index}.partial`, index, true);
    } finally {
      lock.release();
    }
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #blobFile(digest: string): string {
    return path.join(this.reference.directory, 'blobs', 'sha256', digest.slice('sha256:'.length));
  }

  async #make(): Promise<void> {
    const { directory } = this.reference;
    // One by one: with `recursive`, Node reports ENOENT if the filesystem is mounted read-only.
    for (const folder of [
      directory,
      path.join(directory, 'blobs'),
      path.join(directory, 'blobs', 'sha256'),
    ]) {
      await mkdir(folder).catch(unlessThere);
    }
    await writeFile(path.join(directory, 'oci-layout'), LAYOUT, { flag: 'wx' }).catch(unlessThere);
  }

  async #lock() {
    const deadline = Date.now() + LOCK_LIMIT;
    for (;;) {
      try {
        return await lockWriter(path.join(this.reference.directory, 'oci-layout'));
      } catch (error) {
        if (!isPcowError(error, 'PCOW_LOCKED') || Date.now() > deadline) throw error;
      }
      await sleep(20);
    }
  }

  async #entryOf(tag: string | null): Promise<Entry> {
    const entries = await this.#entries();
    const [only] = entries;
    if (tag === null && entries.length === 1 && only !== undefined) return only;
    const found = entries
      .filter(({ annotations }) => annotations?.[TAG] === (tag ?? 'latest'))
      .at(-1);
    if (found !== undefined) return found;
    const tags = entries.flatMap(({ annotations }) => annotations?.[TAG] ?? []);
    throw new PcowError(
      'PCOW_NOT_FOUND',
      `${this.name}: the layout has no image with the tag ${tag ?? 'latest'}`,
      {
        next:
          tags.length === 0
            ? 'push an image into it first'
            : `it has these tags: ${tags.slice(0, 20).join(', ')}`,
      },
    );
  }

  /** The entries that can be read; an empty list if there is no layout yet. */
  async #entries(): Promise<Entry[]> {
    const file = path.join(this.reference.directory, 'index.json');
    if ((await stat(file).catch(() => null)) === null) return [];
    let manifests: unknown;
    try {
      ({ manifests } = JSON.parse((await this.#small(file, 'its index.json')).toString('utf8')) as {
        manifests?: unknown;
      });
    } catch (error) {
      if (error instanceof SyntaxError) throw corrupt(this.name, 'its index.json is not JSON');
      throw error;
    }
    if (!Array.isArray(manifests)) throw corrupt(this.name, 'its index.json lists nothing');
    return (manifests as (Entry | null)[]).filter((entry): entry is Entry =>
      isDigest(entry?.digest),
    );
  }

  async #small(file: string, what: string): Promise<Buffer> {
    const size = (await stat(file).catch(() => null))?.size;
    if (size === undefined) throw corrupt(this.name, `${what} is missing`);
    if (size > LONGEST_TEXT) throw corrupt(this.name, `${what} is too long`);
    return readFile(file);
  }
}

function unlessThere(error: unknown): void {
  if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
}

class FileReader implements BlobReader {
  #file: Promise<FileHandle> | undefined;

  constructor(
    private readonly name: string,
    private readonly path: string,
    private readonly blob: Blob,
  ) {}

  async read(offset: number, length: number): Promise<Buffer> {
    this.#file ??= open(this.path).catch((cause: unknown) => {
      throw new PcowError(
        'PCOW_NOT_FOUND',
        `${this.name}: its blob ${this.blob.digest} is missing`,
        {
          cause,
          next: null,
        },
      );
    });
    const bytes = Buffer.allocUnsafeSlow(length);
    const { bytesRead } = await (await this.#file).read(bytes, 0, length, offset);
    if (bytesRead < length) throw corrupt(this.name, `its blob ${this.blob.digest} ends too early`);
    return bytes;
  }

  async close(): Promise<void> {
    await (await this.#file?.catch(() => undefined))?.close();
  }
}
