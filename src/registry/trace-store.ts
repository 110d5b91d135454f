/**
 * Traces in registries: artifacts that refer to an image, under the tag of the referrers tag schema
 * of the OCI distribution specification.
 */
import createDebug from 'debug';
import { isPcowError, PcowError } from '../engine/index.js';
import type { HttpOptions } from './http.js';
import { jsonObject } from './json-object.js';
import { type Blob, blobOf, corrupt, MANIFEST_TYPE } from './manifest.js';
import { formatReference, isDigest, parseReference, type RegistryReference } from './reference.js';
import { RegistryStore } from './registry-store.js';
import { once, readWhole, type Store } from './store.js';
import { encodeTrace, parseTrace, type Touch } from './trace.js';

const debug = createDebug('pcow:registry');

const TRACE_TYPE = 'application/vnd.pcow.trace.v1';
const REFERRERS_TYPE = 'application/vnd.oci.image.index.v1+json';
const EMPTY_TYPE = 'application/vnd.oci.empty.v1+json';
const EMPTY = Buffer.from('{}');

/** Bytes: JSON needs at most 14 for a piece. */
const LONGEST_TRACE = 1 << 20;

interface Descriptor extends Blob {
  mediaType: string;
  artifactType?: string;
}

/**
 * Pushes a trace of the image with this manifest; it replaces an older one. Returns its digest.
 * `reference`: of the image, in a registry.
 */
export async function pushTrace(
  reference: string,
  image: Blob,
  touches: readonly Touch[],
  options: HttpOptions,
): Promise<string> {
  const bytes = encodeTrace(touches);
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      artifactType: TRACE_TYPE,
      config: { mediaType: EMPTY_TYPE, ...blobOf(EMPTY) },
      layers: [{ mediaType: TRACE_TYPE, ...blobOf(bytes) }],
      subject: { mediaType: MANIFEST_TYPE, ...image },
    }),
  );
  const place = inRegistry(reference);
  await using(place, { ...options, forWriting: true }, async (store) => {
    for (const content of [EMPTY, bytes]) {
      const blob = blobOf(content);
      if (!(await store.hasBlob(blob))) await store.writeBlob(blob, () => once(content));
    }
    await store.writeManifest(manifest);
  });
  const own: Descriptor = {
    mediaType: MANIFEST_TYPE,
    ...blobOf(manifest),
    artifactType: TRACE_TYPE,
  };
  await using(listOf(place, image.digest), { ...options, forWriting: true }, async (store) => {
    const others = (await referrersIn(store)).filter((it) => it.artifactType !== TRACE_TYPE);
    const list = { schemaVersion: 2, mediaType: REFERRERS_TYPE, manifests: [...others, own] };
    await store.writeManifest(Buffer.from(JSON.stringify(list)), REFERRERS_TYPE);
  });
  return own.digest;
}

/** The newest trace of an image; null: there is none, or it cannot be had. */
export async function readTrace(
  reference: string,
  digest: string,
  options: HttpOptions,
): Promise<Touch[] | null> {
  if (parseReference(reference).kind !== 'registry') return null;
  const place = inRegistry(reference);
  try {
    const referrers = await using(listOf(place, digest), options, referrersIn);
    const found = referrers.filter(({ artifactType }) => artifactType === TRACE_TYPE).at(-1);
    if (found === undefined) return null;
    return await using({ ...place, digest: found.digest }, options, async (store) => {
      const { layers } = jsonObject(await store.readManifest()) as { layers?: Descriptor[] };
      const [blob] = Array.isArray(layers) ? layers : [];
      if (!isDescriptor(blob) || blob.size > LONGEST_TRACE) return null;
      return parseTrace(await readWhole(store, blob));
    });
  } catch (error) {
    if (options.signal?.aborted === true) throw error;
    debug('no trace: %s', error);
    return null;
  }
}

async function using<T>(
  place: RegistryReference,
  options: HttpOptions & { forWriting?: boolean },
  work: (store: RegistryStore) => Promise<T>,
): Promise<T> {
  const store = new RegistryStore(place, options);
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

function inRegistry(reference: string): RegistryReference {
  const parsed = parseReference(reference);
  if (parsed.kind === 'registry') return { ...parsed, tag: null, digest: null };
  throw new PcowError(
    'PCOW_UNSUPPORTED',
    `${formatReference(parsed)} is an OCI layout, and only registries keep traces`,
    { next: null },
  );
}

/** The tag under which the OCI specification keeps what refers to a manifest. */
function listOf(place: RegistryReference, digest: string): RegistryReference {
  return { ...place, tag: digest.replace(':', '-') };
}

async function referrersIn(store: Store): Promise<Descriptor[]> {
  let bytes: Buffer;
  try {
    bytes = await store.readManifest();
  } catch (error) {
    if (isPcowError(error, 'PCOW_NOT_FOUND')) return [];
    throw error;
  }
  const { manifests } = jsonObject(bytes);
  if (!Array.isArray(manifests)) throw corrupt(store.name, 'its list of referrers is no list');
  return (manifests as unknown[]).filter(isDescriptor);
}

function isDescriptor(value: unknown): value is Descriptor {
  const { digest, size } = (value ?? {}) as Partial<Descriptor>;
  return isDigest(digest) && Number.isSafeInteger(size) && size! > 0;
}
