/**
 * A new image while it is pulled: hidden until its last snapshot is there. An interrupted pull
 * leaves it, and the next one continues with it.
 */
import path from 'node:path';
import {
  exists,
  giveName,
  Image,
  isPcowError,
  lockWriter,
  removeName,
  standingOn,
} from '../engine/index.js';
import { unfinishedOf } from '../stream/receive.js';
import { removeReceipt } from '../stream/receipt.js';
import { layersThere } from './local-layers.js';
import type { RemoteImage } from './remote-image.js';

/** The snapshot of another image on which a new one will stand. */
export interface Ground {
  file: string;
  /** The id of its layer. */
  layer: number;
  /** The number of layers that the new image need not hold. */
  count: number;
}

/** The path of a new image until it is complete. No image can have such a name. */
export function hiddenName(file: string): string {
  return path.join(path.dirname(file), `.${path.basename(file)}.pulling`);
}

export class HiddenImage {
  readonly path: string;

  /** `file`: the path that the image gets when it is complete. */
  constructor(
    private readonly remote: RemoteImage,
    private readonly file: string,
    private readonly ground: Ground | null,
  ) {
    this.path = hiddenName(file);
  }

  /** Returns how many layers exist, in the hidden image and below it. */
  async prepare(): Promise<number> {
    const { ground } = this;
    const count = await this.#keepLayers();
    if (ground === null || (await exists(this.path))) return count;
    await Image.create(this.path, { base: { path: ground.file, layer: ground.layer } });
    return ground.count;
  }

  /** Gives it its name. Opening it shows that the snapshot on which it stands is still there. */
  async appear(): Promise<void> {
    const { ground } = this;
    if (ground === null) return giveName(this.path, this.file, false);
    await standingOn(ground.file, async () => {
      await (await Image.open(this.path)).close();
      await giveName(this.path, this.file, false);
    });
  }

  /** The layers that an interrupted pull has left complete. Everything else there is dropped. */
  async #keepLayers(): Promise<number> {
    if (!(await exists(this.path))) return 0;
    const count = await this.#usableLayers().catch((error: unknown) => {
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
    await removeHidden(this.path);
    return 0;
  }

  /** null: it holds something else, and is not the beginning of this image. */
  async #usableLayers(): Promise<number | null> {
    const { config } = this.remote;
    const below = this.ground?.count ?? 0;
    const image = await Image.open(this.path);
    let count: number;
    try {
      const own = image.snapshotNames().length;
      const { base, blockSize } = image.info();
      if ((base?.layer ?? null) !== (this.ground?.layer ?? null)) return null;
      const there = await layersThere(image, this.remote);
      count = own === 0 ? below : there.count;
      if (there.different !== null || own > count) return null;
      if (this.ground === null && blockSize !== config.blockSize) return null;
    } finally {
      await image.close();
    }
    const next = config.layers[count];
    const unfinished = await unfinishedOf(this.path);
    const continues =
      unfinished === null
        ? count > below || next === undefined
        : unfinished.begin.source === next?.index.digest;
    return continues ? count : null;
  }
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
