/**
 * Makes a lazy image (docs/registry.md, "Lazy images"): its layers as the registry's indexes
 * describe them, without their bytes.
 */
import { Image, PcowError, throughDraft } from '../engine/index.js';
import type { HttpOptions } from './http.js';
import { LARGEST_LAZY_BLOCK, remoteMarks, zeroRanges } from './lazy-marks.js';
import { originOf, Recording, SourceStore } from './lazy-source.js';
import { withStore } from './open-store.js';
import type { Pulled } from './pull.js';
import { RemoteImage } from './remote-image.js';
import type { Store } from './store.js';
import { readTrace } from './trace-store.js';

/** Bytes of all indexes of an image: they describe at least 600 GiB. */
const MOST_INDEXES = 256 << 20;

/** How a lazy image is made. */
export interface LazyOptions extends HttpOptions {
  /** The most bytes that it keeps of what is fetched. Default: it keeps everything. */
  limit?: number | undefined;
}

/** An image of which everything is kept that is read of it. */
export interface Recorded {
  recording: Recording;
  remote: RemoteImage;
}

export async function record(store: Store, signal: AbortSignal | undefined): Promise<Recorded> {
  const recording = new Recording(store);
  return { recording, remote: await RemoteImage.read(recording, signal) };
}

/** Makes a lazy image at `file` of the image with this reference. Otherwise like makeLazy(). */
export function pullLazily(reference: string, file: string, options: LazyOptions): Promise<Pulled> {
  return withStore(reference, 'pull', options, async (store) =>
    makeLazy(await record(store, options.signal), reference, file, options),
  );
}

/**
 * Makes a lazy image at `file`, where nothing may be. `reference`, `options`: how the store was
 * opened. `fetched` in the result counts the indexes only.
 */
export async function makeLazy(
  { recording, remote }: Recorded,
  reference: string,
  file: string,
  options: LazyOptions,
): Promise<Pulled> {
  const { limit = null } = options;
  const { layers } = remote.config;
  const fetched = layers.reduce((sum, { index }) => sum + index.size, 0);
  if (fetched > MOST_INDEXES) {
    throw new PcowError('PCOW_LIMIT', `${remote.name} is too large to be fetched as it is used`, {
      next: 'pull all of it: pcow pull without --lazy',
    });
  }
  await throughDraft(file, {}, async (draft) => {
    for (const at of layers.keys()) await remote.indexOf(at);
    const trace = (await readTrace(reference, remote.digest, options)) ?? [];
    const source = recording.encodeSource(
      originOf(reference, remote.digest, options, trace, limit),
    );
    await fillDraft(draft, source);
  });
  return {
    digest: remote.digest,
    snapshot: layers.at(-1)?.snapshot.name ?? '',
    layers: layers.length,
    present: 0,
    fetched,
    made: true,
  };
}

async function fillDraft(draft: string, source: Buffer): Promise<void> {
  const remote = await RemoteImage.read(SourceStore.parse(source, draft));
  const { layers } = remote.config;
  const blockSize = Math.min(remote.config.blockSize, LARGEST_LAZY_BLOCK);
  await Image.createInDraft(draft, { size: layers[0]!.size, blockSize });
  const image = await Image.open(draft, { write: true });
  try {
    await image.setSource(source);
    for (const [at, { snapshot, size }] of layers.entries()) {
      const index = await remote.indexOf(at);
      if (size > image.size()) await image.resize(size);
      for (const marks of remoteMarks(index, blockSize)) await image.markRemote(marks);
      for (const { offset, length } of zeroRanges(index, blockSize))
        await image.discard(offset, length);
      const { name, identity, created } = snapshot;
      await image.snapshot(name, { identity, created: new Date(created) });
    }
    if ((await image.remoteBytes()) === 0) await image.setSource(null);
  } finally {
    await image.close();
  }
}
