/**
 * The manifest and the config of an image in a registry (docs/registry.md). Both come from outside,
 * so everything in them is checked.
 */
import {
  checkBlockSize,
  checkCreated,
  checkSize,
  checkSnapshotName,
  isPcowError,
  PcowError,
} from '../engine/index.js';
import { digestOf } from './digest.js';
import { LONGEST_INDEX } from './piece-index.js';
import { isDigest } from './reference.js';

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json';
export const ARTIFACT_TYPE = 'application/vnd.pcow.image.v1';
const CONFIG_TYPE = 'application/vnd.pcow.image.config.v1+json';
export const INDEX_TYPE = 'application/vnd.pcow.layer.index.v1';
export const DATA_TYPE = 'application/vnd.pcow.layer.data.v1';

/** Bytes of a manifest or a config. */
export const LONGEST_TEXT = 4 << 20;
export const MOST_LAYERS = 1000;
/** Bytes of a data blob: the largest number of pieces, each of the largest size. */
const LONGEST_BLOB = 2 ** 40;

/** The identification of a blob: its digest and its length. */
export interface Blob {
  digest: string;
  size: number;
}

/** A layer of the image: a snapshot, as changes on the layer before it. */
export interface ImageLayer {
  snapshot: { name: string; identity: string; created: string };
  /** Bytes of the image at this snapshot. */
  size: number;
  /** Bytes in data units, before compression. */
  bytes: number;
  index: Blob;
  /** null: the layer holds no bytes. */
  data: Blob | null;
}

export interface ImageConfig {
  blockSize: number;
  /** The lowest first. */
  layers: ImageLayer[];
}

export function blobOf(bytes: Uint8Array): Blob {
  return { digest: digestOf(bytes), size: bytes.length };
}

/** The same config gives the same bytes: the order of the fields is part of the specification. */
export function encodeConfig({ blockSize, layers }: ImageConfig): Buffer {
  return encodeJson({
    version: 1,
    blockSize,
    layers: layers.map(({ snapshot: { name, identity, created }, size, bytes, index, data }) => ({
      snapshot: { name, identity, created },
      size,
      bytes,
      index: plain(index),
      data: data && plain(data),
    })),
  });
}

export function encodeManifest(config: Buffer, { layers }: ImageConfig): Buffer {
  const last = layers.at(-1);
  const named = new Set<string>();
  const blobs = layers.flatMap(({ index, data }) => [
    { mediaType: INDEX_TYPE, ...plain(index) },
    ...(data === null ? [] : [{ mediaType: DATA_TYPE, ...plain(data) }]),
  ]);
  return encodeJson({
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    artifactType: ARTIFACT_TYPE,
    config: { mediaType: CONFIG_TYPE, ...blobOf(config) },
    layers: blobs.filter(({ digest }) => !named.has(digest) && named.add(digest)),
    annotations: {
      'org.opencontainers.image.created': last?.snapshot.created,
      'org.opencontainers.image.title': last?.snapshot.name,
    },
  });
}

function plain({ digest, size }: Blob): Blob {
  return { digest, size };
}

function encodeJson(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** The config of an image, as named in its manifest. `what` names the image in messages. */
export function parseManifest(
  bytes: Buffer,
  what: string,
): { config: Blob; blobs: Map<string, number> } {
  const { mediaType, artifactType, config, layers } = objectOf(parseJson(bytes, what), what);
  const isIndex = mediaType !== undefined && mediaType !== MANIFEST_TYPE;
  const type =
    typeof config === 'object' && config !== null
      ? (config as Record<string, unknown>).mediaType
      : undefined;
  if (isIndex || (artifactType ?? ARTIFACT_TYPE) !== ARTIFACT_TYPE || type !== CONFIG_TYPE) {
    throw new PcowError(
      'PCOW_NOT_AN_IMAGE',
      `${what} is something else, not an image that “pcow push” wrote`,
      {
        next: 'see what it is: skopeo inspect --raw',
      },
    );
  }
  if (!Array.isArray(layers) || layers.length > 2 * MOST_LAYERS)
    throw corrupt(what, 'its list of blobs is missing or too long');
  const blobs = new Map<string, number>();
  for (const layer of layers) {
    const { digest, size } = parseBlob(layer, LONGEST_BLOB, what);
    blobs.set(digest, size);
  }
  return { config: parseBlob(config, LONGEST_TEXT, what), blobs };
}

/** `blobs`: those that the manifest lists. A registry keeps no others. */
export function parseConfig(
  bytes: Buffer,
  blobs: ReadonlyMap<string, number>,
  what: string,
): ImageConfig {
  const { version, blockSize, layers } = objectOf(parseJson(bytes, what), what);
  if (version !== 1) {
    throw new PcowError('PCOW_UNSUPPORTED', `${what} has a version that this Pcow does not know`, {
      next: 'use a newer Pcow',
    });
  }
  if (!Array.isArray(layers) || layers.length === 0 || layers.length > MOST_LAYERS) {
    throw corrupt(what, 'its list of layers is missing, empty or too long');
  }
  return checking(what, () => {
    checkBlockSize(blockSize);
    const parsed = layers.map((layer) => parseLayer(layer, what));
    for (const [at, { snapshot, size, index, data }] of parsed.entries()) {
      if (size < (parsed[at - 1]?.size ?? 0))
        throw corrupt(what, 'an image is smaller than the one that it stands on');
      const same = parsed
        .slice(0, at)
        .some(
          (it) => it.snapshot.name === snapshot.name || it.snapshot.identity === snapshot.identity,
        );
      if (same) throw corrupt(what, 'two of its snapshots have the same name or identity');
      for (const blob of [index, data]) {
        if (blob !== null && blobs.get(blob.digest) !== blob.size)
          throw corrupt(what, 'its manifest does not list all of its blobs');
      }
    }
    return { blockSize, layers: parsed };
  });
}

function parseLayer(value: unknown, what: string): ImageLayer {
  const layer = objectOf(value, what);
  const { name, identity, created } = objectOf(layer.snapshot, what);
  checkSnapshotName(name);
  if (typeof identity !== 'string' || !/^[0-9a-f]{16}$/.test(identity) || /^0+$/.test(identity)) {
    throw corrupt(what, 'a snapshot has no identity');
  }
  if (
    typeof created !== 'string' ||
    !/^[+-]?\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/.test(created)
  ) {
    throw corrupt(what, 'a snapshot has no time');
  }
  checkCreated(new Date(created));
  checkSize(layer.size);
  return {
    snapshot: { name, identity, created },
    size: layer.size,
    bytes: countOf(layer.bytes, layer.size, what),
    index: parseBlob(layer.index, LONGEST_INDEX, what),
    data: layer.data === null ? null : parseBlob(layer.data, LONGEST_BLOB, what),
  };
}

function parseBlob(value: unknown, most: number, what: string): Blob {
  const { digest, size } = objectOf(value, what);
  if (!isDigest(digest)) throw corrupt(what, 'a digest is not a SHA-256');
  return { digest, size: countOf(size, most, what) };
}

function countOf(value: unknown, most: number, what: string): number {
  if (!Number.isSafeInteger(value) || (value as number) < 0 || (value as number) > most) {
    throw corrupt(what, 'a number is out of range');
  }
  return value as number;
}

function parseJson(bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    throw corrupt(what, 'what must be JSON is not');
  }
}

function objectOf(value: unknown, what: string): Record<string, unknown> {
  if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  throw corrupt(what, 'a part of its manifest or config is missing');
}

/** The engine's checks call the values arguments; here they are content of a registry. */
function checking<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (isPcowError(error, 'PCOW_INVALID', 'PCOW_TOO_LARGE')) throw corrupt(what, error.message);
    throw error;
  }
}

export function corrupt(what: string, why: string): PcowError {
  return new PcowError('PCOW_CORRUPT', `${what} is damaged: ${why}`, {
    next: 'push it again, or pull it from elsewhere',
  });
}
