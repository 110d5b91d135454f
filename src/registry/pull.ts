/**
 * Pulls an image (docs/registry.md). Each layer is received like a stream (src/stream), so an
 * interrupted pull continues where it stopped, and a snapshot appears when all of it has arrived. A
 * new image is hidden until its last snapshot is there.
 */
import path from 'node:path';
import {
  exists,
  giveName,
  Image,
  isPcowError,
  lockWriter,
  type LongOptions,
  PcowError,
  removeName,
  standingOn,
} from '../engine/index.js';
import type { Named } from '../stream/header.js';
import { receive, unfinishedOf } from '../stream/receive.js';
import { removeReceipt } from '../stream/receipt.js';
import { layerStream } from './layer-stream.js';
import { layersThere } from './local-layers.js';
import { digestOf } from './digest.js';
import { corrupt, type ImageConfig, parseConfig, parseManifest } from './manifest.js';
import { PieceIndex } from './piece-index.js';
import { readWhole, type Store } from './store.js';

/** The result of pull(). */
export interface Pulled {
  /** Of the manifest. */
  digest: string;
  /** The name of the newest snapshot. */
  snapshot: string;
  /** The number of layers. */
  layers: number;
  /** How many of them the image had before. */
  present: number;
  /** Bytes of the blobs of the other layers: what an uninterrupted pull fetches. */
  fetched: number;
  /** Whether the image is new. */
  made: boolean;
}

/** For pull(). */
export interface Pulling extends LongOptions {
  /** Drop what an existing image holds beyond its snapshots. */
  force?: boolean | undefined;
  /** The base of the new image: the newest snapshot there that belongs to the pulled image. */
  base?: string | undefined;
  /** As for receive(). */
  opening?: (<T>(open: () => Promise<T>) => Promise<T>) | undefined;
}

/** The number of earlier snapshots that a stream names. */
const HISTORY = 200;

/** An image in a registry or layout, whose config was read and checked. */
export interface RemoteImage {
  digest: string;
  config: ImageConfig;
}

export async function readRemote(store: Store): Promise<RemoteImage> {
  const manifest = await store.readManifest();
  const { config, blobs } = parseManifest(manifest, store.name);
  return {
    digest: digestOf(manifest),
    config: parseConfig(await readWhole(store, config), blobs, store.name),
  };
}

/** The path of a new image until it is complete. No image can have such a name. */
export function hiddenName(file: string): string {
  return path.join(path.dirname(file), `.${path.basename(file)}.pulling`);
}

/** Pulls into the image file; makes it if there is none. */
export async function pull(store: Store, file: string, options: Pulling = {}): Promise<Pulled> {
  try {
    return await pullInto(store, file, options);
  } catch (error) {
    // The user knows the image only by its final name.
    if (error instanceof Error) error.message = error.message.replaceAll(hiddenName(file), file);
    throw error;
  }
}

async function pullInto(store: Store, file: string, options: Pulling): Promise<Pulled> {
  const { digest, config } = await readRemote(store);
  const made = !(await exists(file));
  const target = made ? hiddenName(file) : file;
  const indexes = new Map<number, PieceIndex>();
  const indexOf = async (at: number) => {
    const layer = config.layers[at]!;
    const index =
      indexes.get(at) ??
      PieceIndex.parse(await readWhole(store, layer.index), layer.size, layer.data?.size ?? 0);
    if (index.data !== layer.bytes) throw corrupt(store.name, 'the number of its bytes is wrong');
    indexes.clear(); // one is enough, and indexes may be large
    indexes.set(at, index);
    return index;
  };
  const { base, force, ...rest } = options;
  if (base !== undefined && !made)
    throw new PcowError('PCOW_EXISTS', `${file} exists already: only a new image can get a base`);
  const ground =
    base === undefined ? null : await groundIn(base, store, config, indexOf, options.signal);
  const present = made
    ? await prepareHidden(target, config, ground, indexOf, options.signal)
    : await whatIsThere(store, file, config, indexOf, options.signal);
  const missing = config.layers.slice(present);
  const total = missing.reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  for (const [at, layer] of missing.entries()) {
    await receiveLayer(store, target, config, present + at, await indexOf(present + at), {
      ...rest,
      // Data that is hidden and in no snapshot is of no use.
      force: made || force === true,
      onProgress: (received) => options.onProgress?.(done + received, total),
    });
    done += layer.bytes;
  }
  if (ground !== null) await standingOn(ground.file, () => appear(target, file));
  else if (made) await giveName(target, file, false);
  return {
    digest,
    snapshot: config.layers.at(-1)?.snapshot.name ?? '',
    layers: config.layers.length,
    present,
    fetched: missing.reduce((sum, { index, data }) => sum + index.size + (data?.size ?? 0), 0),
    made,
  };
}

/**
 * The base keeps its snapshots meanwhile. Opening the image shows that its snapshot is still there.
 */
async function appear(hidden: string, file: string): Promise<void> {
  await (await Image.open(hidden)).close();
  await giveName(hidden, file, false);
}

/** The snapshot of another image on which a new one will stand. */
interface Ground {
  file: string;
  /** The id of its layer. */
  layer: number;
  /** The number of layers that the new image need not hold. */
  count: number;
}

async function groundIn(
  file: string,
  store: Store,
  config: ImageConfig,
  indexOf: IndexOf,
  signal: AbortSignal | undefined,
): Promise<Ground> {
  const image = await Image.open(file);
  try {
    const { count, top } = await layersThere(image, config, indexOf, signal);
    if (top !== null) return { file, layer: top.id, count };
    throw new PcowError(
      'PCOW_NOT_FOUND',
      `${file} has no snapshot of ${store.name} on which another image could stand`,
      {
        next: 'pull it without --base',
      },
    );
  } finally {
    await image.close();
  }
}

/** Returns how many layers exist, in the hidden image and below it. */
async function prepareHidden(
  hidden: string,
  config: ImageConfig,
  ground: Ground | null,
  indexOf: IndexOf,
  signal: AbortSignal | undefined,
): Promise<number> {
  const count = await whatIsHidden(hidden, config, ground, indexOf, signal);
  if (ground === null || (await exists(hidden))) return count;
  await Image.create(hidden, { base: { path: ground.file, layer: ground.layer } });
  return ground.count;
}

/** Removes what an interrupted pull of a new image has left. Returns whether there was anything. */
export async function abandonPull(file: string): Promise<boolean> {
  const hidden = hiddenName(file);
  if (!(await exists(hidden))) return false;
  await removeHidden(hidden);
  return true;
}

/** Fails if another pull is writing it. */
async function removeHidden(hidden: string): Promise<void> {
  const lock = await lockWriter(hidden);
  try {
    await removeName(hidden);
    await removeReceipt(hidden);
  } finally {
    lock.release();
  }
}

type IndexOf = (layer: number) => Promise<PieceIndex>;

/** The layers that an interrupted pull has left complete. Everything else there is dropped. */
async function whatIsHidden(
  hidden: string,
  config: ImageConfig,
  ground: Ground | null,
  indexOf: IndexOf,
  signal: AbortSignal | undefined,
): Promise<number> {
  if (!(await exists(hidden))) return 0;
  const count = await countOf(hidden, config, ground, indexOf, signal).catch((error: unknown) => {
    if (
      isPcowError(
        error,
        'PCOW_NOT_AN_IMAGE',
        'PCOW_CORRUPT',
        'PCOW_BASE_MISSING',
        'PCOW_BASE_CHANGED',
      )
    )
      return null;
    throw error;
  });
  if (count !== null) return count;
  await removeHidden(hidden);
  return 0;
}

/** null: it holds something else, and is not the beginning of this image. */
async function countOf(
  hidden: string,
  config: ImageConfig,
  ground: Ground | null,
  indexOf: IndexOf,
  signal: AbortSignal | undefined,
): Promise<number | null> {
  const image = await Image.open(hidden);
  let count: number;
  try {
    const own = image.snapshotNames().length;
    const { base } = image.info();
    if ((base?.layer ?? null) !== (ground?.layer ?? null)) return null;
    const there = await layersThere(image, config, indexOf, signal);
    count = own === 0 ? (ground?.count ?? 0) : there.count;
    if (there.different !== null || own > count) return null;
    if (ground === null && image.info().blockSize !== config.blockSize) return null;
  } finally {
    await image.close();
  }
  const next = config.layers[count];
  const unfinished = await unfinishedOf(hidden);
  const continues =
    unfinished === null
      ? count > (ground?.count ?? 0) || next === undefined
      : unfinished.begin.source === next?.index.digest;
  return continues ? count : null;
}

/** The layers that an existing image already has: at least one, otherwise it is another image. */
async function whatIsThere(
  store: Store,
  file: string,
  config: ImageConfig,
  indexOf: IndexOf,
  signal: AbortSignal | undefined,
): Promise<number> {
  const image = await Image.open(file);
  try {
    const { count, different, top } = await layersThere(image, config, indexOf, signal);
    if (different !== null) {
      throw new PcowError(
        'PCOW_EXISTS',
        `${file} has a snapshot ${different} whose content differs from that in ${store.name}`,
        {
          next: 'pull it as another image: pcow pull REFERENCE NEW',
        },
      );
    }
    if (top === null) {
      throw new PcowError(
        'PCOW_EXISTS',
        `${file} exists already, and has no snapshot of ${store.name} to which the others could be added`,
        {
          next: 'pull it as another image: pcow pull REFERENCE NEW',
        },
      );
    }
    return count;
  } finally {
    await image.close();
  }
}

async function receiveLayer(
  store: Store,
  file: string,
  { layers, blockSize }: ImageConfig,
  at: number,
  index: PieceIndex,
  options: Pulling,
): Promise<void> {
  const layer = layers[at]!;
  const below = layers[at - 1];
  const source = layer.index.digest;
  const unfinished = (await exists(file)) ? await unfinishedOf(file) : null;
  const resumedAt = unfinished?.begin.source === source ? unfinished.offset : 0;
  const history: Named[] = layers
    .slice(Math.max(0, at - HISTORY), at)
    .reverse()
    .map(({ snapshot: { name, identity } }) => ({ name, identity }));
  const from =
    below === undefined ? null : { name: below.snapshot.name, identity: below.snapshot.identity };
  const { name, identity, created } = layer.snapshot;
  const begin = {
    version: 1,
    size: layer.size,
    blockSize,
    snapshot: { name, identity, created },
    from,
    resumedAt,
    history,
    source,
  } as const;
  const { signal, onProgress, ...receiving } = options;
  await receive(
    layerStream(store, layer, index, { ...begin, history }, { signal, onProgress }),
    file,
    {
      ...receiving,
      signal,
    },
  );
}
