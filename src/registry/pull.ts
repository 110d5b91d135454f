/**
 * Pulls an image (docs/registry.md). Each layer is received like a stream (src/stream), so an
 * interrupted pull continues where it stopped, and a snapshot appears when all of it has arrived. A
 * new image is hidden until its last snapshot is there.
 */
import { exists, Image, type LongOptions, PcowError } from '../engine/index.js';
import type { Named } from '../stream/header.js';
import { receive, unfinishedOf } from '../stream/receive.js';
import { type Ground, HiddenImage, hiddenName } from './hidden-image.js';
import { type LayerBegin, layerStream } from './layer-stream.js';
import { layersThere } from './local-layers.js';
import { RemoteImage } from './remote-image.js';
import type { Store } from './store.js';

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

/** Pulls into the image file; makes it if there is none. */
export async function pull(store: Store, file: string, options: Pulling = {}): Promise<Pulled> {
  try {
    const remote = await RemoteImage.read(store, options.signal);
    return (await exists(file))
      ? await pullInto(remote, file, options)
      : await pullNew(remote, file, options);
  } catch (error) {
    // The user knows the image only by its final name.
    if (error instanceof Error) error.message = error.message.replaceAll(hiddenName(file), file);
    throw error;
  }
}

async function pullNew(remote: RemoteImage, file: string, options: Pulling): Promise<Pulled> {
  const ground = options.base === undefined ? null : await groundIn(options.base, remote);
  const hidden = new HiddenImage(remote, file, ground);
  const present = await hidden.prepare();
  // Data that is hidden and in no snapshot is of no use.
  await receiveFrom(present, remote, hidden.path, { ...options, force: true });
  await hidden.appear();
  return resultOf(remote, present, true);
}

async function pullInto(remote: RemoteImage, file: string, options: Pulling): Promise<Pulled> {
  if (options.base !== undefined)
    throw new PcowError('PCOW_EXISTS', `${file} exists already: only a new image can get a base`);
  const present = await presentIn(file, remote);
  await receiveFrom(present, remote, file, options);
  return resultOf(remote, present, false);
}

function resultOf({ digest, config }: RemoteImage, present: number, made: boolean): Pulled {
  const { layers } = config;
  return {
    digest,
    snapshot: layers.at(-1)?.snapshot.name ?? '',
    layers: layers.length,
    present,
    fetched: layers
      .slice(present)
      .reduce((sum, { index, data }) => sum + index.size + (data?.size ?? 0), 0),
    made,
  };
}

async function groundIn(file: string, remote: RemoteImage): Promise<Ground> {
  const image = await Image.open(file);
  try {
    const { count, top } = await layersThere(image, remote);
    if (top !== null) return { file, layer: top.id, count };
    throw new PcowError(
      'PCOW_NOT_FOUND',
      `${file} has no snapshot of ${remote.name} on which another image could stand`,
      { next: 'pull it without --base' },
    );
  } finally {
    await image.close();
  }
}

/** How many layers an existing image already has: at least one, or it is another image. */
async function presentIn(file: string, remote: RemoteImage): Promise<number> {
  const image = await Image.open(file);
  try {
    const { count, different, top } = await layersThere(image, remote);
    if (different === null && top !== null) return count;
    throw new PcowError(
      'PCOW_EXISTS',
      different === null
        ? `${file} exists already, and has no snapshot of ${remote.name} to which the others could be added`
        : `${file} has a snapshot ${different} whose content differs from that in ${remote.name}`,
      { next: 'pull it as another image: pcow pull REFERENCE NEW' },
    );
  } finally {
    await image.close();
  }
}

/** Receives the layers from this one on. */
async function receiveFrom(
  first: number,
  remote: RemoteImage,
  file: string,
  { onProgress, signal, force, opening }: Pulling,
): Promise<void> {
  const { layers } = remote.config;
  const total = layers.slice(first).reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  for (let at = first; at < layers.length; at++) {
    const layer = layers[at]!;
    const index = await remote.indexOf(at);
    const begin = await beginOf(remote, file, at);
    const stream = layerStream(remote.store, layer, index, begin, {
      signal,
      onProgress: (received) => onProgress?.(done + received, total),
    });
    await receive(stream, file, { signal, force, opening });
    done += layer.bytes;
  }
}

/** The stream of a layer: from where an interrupted one stopped. */
async function beginOf(
  { config: { layers, blockSize } }: RemoteImage,
  file: string,
  at: number,
): Promise<LayerBegin> {
  const layer = layers[at]!;
  const source = layer.index.digest;
  const unfinished = (await exists(file)) ? await unfinishedOf(file) : null;
  const history: Named[] = layers
    .slice(Math.max(0, at - HISTORY), at)
    .reverse()
    .map(({ snapshot: { name, identity } }) => ({ name, identity }));
  return {
    version: 1,
    size: layer.size,
    blockSize,
    snapshot: { ...layer.snapshot },
    from: history[0] ?? null,
    resumedAt: unfinished?.begin.source === source ? unfinished.offset : 0,
    history,
    source,
  };
}
