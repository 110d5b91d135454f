/**
 * The lazy image that `pcow create NEW --base REGISTRY/REPO:TAG` stands on: in the directory of the
 * new image, named after the repository. Images of one registry's image share it.
 */
import path from 'node:path';
import { exists, type Image, isPcowError, PcowError } from '../engine/index.js';
import { IMAGE_SUFFIX } from '../images/image-names.js';
import { type LazyOptions, makeLazy, record, type Recorded } from '../registry/lazy-image.js';
import { sourceOf } from '../registry/lazy-layers.js';
import { layersThere } from '../registry/local-layers.js';
import { withStore } from '../registry/open-store.js';
import { nameFrom, parseReference } from '../registry/reference.js';
import type { RemoteImage } from '../registry/remote-image.js';
import { withImage } from '../images/with-image.js';

/** A snapshot of a lazy image, or of one that has been lazy. */
export interface LazyBase {
  /** The image file. */
  file: string;
  snapshot: string;
  /** Whether it was made now. */
  made: boolean;
}

/**
 * Finds the image in the directory, or makes it. If its name is taken by another image, for example
 * by what the tag meant before, a part of the digest is added to the name.
 */
export async function lazyBase(
  reference: string,
  directory: string,
  options: LazyOptions,
): Promise<LazyBase> {
  const base = await findOrMake(reference, directory, options);
  if (!base.made && options.limit !== undefined) await mustHaveLimit(base.file, options.limit);
  return base;
}

async function findOrMake(
  reference: string,
  directory: string,
  options: LazyOptions,
): Promise<LazyBase> {
  const parsed = parseReference(reference);
  const named = (end: string) => path.join(directory, nameFrom(parsed) + end + IMAGE_SUFFIX);
  const filesFor = (digest: string) => [named(''), named(`-${digest.slice(7, 19)}`)];
  const { digest } = parsed;
  // The digest says all: no registry is needed for an image that is there.
  for (const file of digest === null ? [] : filesFor(digest)) {
    const snapshot = (await exists(file)) ? await lazySnapshotIn(file, digest!) : null;
    if (snapshot !== null) return { file, snapshot, made: false };
  }
  return withStore(reference, 'pull', options, async (store) => {
    const recorded = await record(store, options.signal);
    const files = filesFor(recorded.remote.digest);
    for (const file of files) {
      const base = await baseAt(file, recorded, reference, options);
      if (base !== null) return base;
    }
    throw new PcowError(
      'PCOW_EXISTS',
      `${files.join(' and ')} are other images than ${store.name}`,
      { next: 'rename one of them: pcow rename' },
    );
  });
}

/** null: another image is there. */
async function baseAt(
  file: string,
  recorded: Recorded,
  reference: string,
  options: LazyOptions,
): Promise<LazyBase | null> {
  for (;;) {
    if (await exists(file)) {
      const snapshot =
        (await lazySnapshotIn(file, recorded.remote.digest)) ??
        (await snapshotIn(file, recorded.remote));
      return snapshot === null ? null : { file, snapshot, made: false };
    }
    try {
      const { snapshot } = await makeLazy(recorded, reference, file, options);
      return { file, snapshot, made: true };
    } catch (error) {
      // Another process may have made it at the same time.
      if (!isPcowError(error, 'PCOW_EXISTS')) throw error;
    }
  }
}

/** A limit is never changed, or ignored, without a word. */
async function mustHaveLimit(file: string, limit: number): Promise<void> {
  const source = await withImage(file, {}, sourceOf);
  if (source?.origin.limit === limit) return;
  throw new PcowError(
    'PCOW_EXISTS',
    `${file} is there already, and has ${source?.origin.limit == null ? 'no limit' : 'another limit'}`,
    { next: 'omit --limit, or rename that image: pcow rename' },
  );
}

/**
 * The name of the newest snapshot of a lazy image with this digest; null: it is another image, or
 * not lazy any more.
 */
function lazySnapshotIn(file: string, digest: string): Promise<string | null> {
  return withImage(file, {}, async (image) => {
    const source = await sourceOf(image);
    return source?.remote.digest === digest ? newestOf(image, source.remote) : null;
  });
}

/** The same of an image that has everything: its content is compared. */
function snapshotIn(file: string, remote: RemoteImage): Promise<string | null> {
  return withImage(file, {}, async (image) => {
    if (image.info().lazy) return null;
    const { count, top } = await layersThere(image, remote);
    return count === remote.config.layers.length ? (top?.name ?? null) : null;
  });
}

function newestOf(image: Image, { config: { layers } }: RemoteImage): string | null {
  const identity = layers.at(-1)?.snapshot.identity;
  const found = image
    .snapshots({ countData: false })
    .find((snapshot) => snapshot.identity === identity);
  return found?.name ?? null;
}
