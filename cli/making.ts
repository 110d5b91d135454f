/** Making image files: what `create`, `clone` and `pcow-img create` share. */
import path from 'node:path';
import { automaticName } from '../src/images/automatic-name.js';
import {
  type BaseOptions,
  exists,
  Image,
  type ImageInfo,
  mayBeReplaced,
  removeRemains,
  standingOn,
} from '../src/engine/index.js';
import { askImage } from './control.js';
import { Failure } from './output/errors.js';
import { withImage } from './images.js';
import { quote } from './quote.js';
import { formatSize } from './size.js';
import { findTarget, type ImageTarget, type Target } from './target.js';

export interface MakeOptions {
  /** Bytes; left out: the base's. */
  size?: number | undefined;
  /** Bytes; left out: the base's, or the default. */
  blockSize?: number | undefined;
  /** IMAGE or IMAGE@SNAPSHOT, as it was typed. */
  base?: string | undefined;
  force?: boolean | undefined;
}

/** Makes a new image, and returns what it is. Whatever can be refused is refused before a base is frozen for it. */
export async function makeImage(target: ImageTarget, options: MakeOptions): Promise<ImageInfo> {
  const { size, blockSize, force = false } = options;
  await checkTarget(target, force);
  await removeRemains(path.dirname(target.file));
  if (options.base === undefined) {
    await Image.create(target.file, { size, blockSize, force });
  } else {
    const base = await findTarget(options.base);
    await checkBase(base, target, { size, blockSize });
    const asItIs = size === undefined && blockSize === undefined && !force;
    if (base.image.mount !== null && base.image.mount.mountpoint === target.mount?.mountpoint && asItIs) {
      const { mount, name } = base.image;
      await askImage(mount, name, 'clone', [target.name, base.snapshot ?? []].flat().join(' '));
    } else {
      await onFrozenLayer(base, (standing) => Image.create(target.file, { size, blockSize, force, base: standing }));
    }
  }
  return withImage(target.file, {}, (image) => image.info());
}

/** What the commands that make an image tell programs of it. */
export function madeImage(target: ImageTarget, { size, blockSize, base }: ImageInfo): object {
  return { image: target.file, size, blockSize, base };
}

/** A new image never replaces a file unasked, and never one that is in use or that other images stand on. */
export async function checkTarget(target: ImageTarget, force: boolean, sources: readonly string[] = []): Promise<void> {
  if (!(await exists(target.file))) return;
  if (!force) {
    throw new Failure(
      'PCOW_EXISTS',
      `${target.file} exists already`,
      'choose another name, or replace it with --force',
    );
  }
  await mayBeReplaced(target.file, { replace: true, sources });
}

/** What is wrong with a base can be told by reading it, before it is frozen. */
export async function checkBase(
  { image, snapshot }: Target,
  target: ImageTarget,
  { size, blockSize }: Pick<MakeOptions, 'size' | 'blockSize'> = {},
): Promise<void> {
  const loop = (on: string) =>
    new Failure('PCOW_BASE_LOOP', `${quote(target.given)} can't stand on ${on}`, 'choose another base');
  if (image.file === target.file) throw loop('itself');
  await withImage(image.file, {}, (base) => {
    const info = base.info();
    if (info.chain.some((link) => link.path === target.file)) throw loop(`${quote(image.given)}, which stands on it`);
    if (snapshot !== null) {
      base.layerOf(snapshot);
    }
    if (blockSize !== undefined && blockSize !== info.blockSize) {
      throw new Failure(
        'PCOW_INVALID',
        `the base ${image.name} has blocks of ${formatSize(info.blockSize)}, and an image on it has the same, not ${formatSize(blockSize)}`,
        'leave the block size out to take the base’s',
      );
    }
    const baseSize = snapshot === null ? info.size : base.snapshots().find(({ name }) => name === snapshot)?.size;
    if (size !== undefined && baseSize !== undefined && size < baseSize) {
      throw new Failure(
        'PCOW_INVALID',
        `the size ${size} is smaller than the base ${image.name}${snapshot === null ? '' : `@${snapshot}`}, which has ${baseSize} bytes`,
        'leave the size out to take the base’s',
      );
    }
  });
}

/**
 * Calls `work` with the frozen layer of `base` to stand on. A base whose active layer holds data is frozen first, so it
 * can go on being written. Nobody takes that layer away before `work` is done, when what stands on it is durable.
 */
export async function onFrozenLayer(base: Target, work: (base: BaseOptions) => Promise<void>): Promise<void> {
  const { image, snapshot } = base;
  if (snapshot !== null) {
    await standingOn(image.file, () => work({ path: image.file, snapshot }));
  } else if (image.mount === null) {
    await withImage(image.file, { write: true }, async (open) => {
      const layer = await open.freezeForClone(automaticName());
      await standingOn(image.file, () => work({ path: image.file, layer }));
    });
  } else {
    const name = automaticName();
    await askImage(image.mount, image.name, 'snapshot', name);
    // Somebody else may have deleted it by now: then there is no such snapshot.
    await standingOn(image.file, () => work({ path: image.file, snapshot: name }));
  }
}

/** What is to be known of an image whose base lies in another directory; null: it does not. */
export function distanceWarning(target: ImageTarget, base: ImageTarget): string | null {
  if (path.dirname(target.file) === path.dirname(base.file)) return null;
  return (
    `${target.name} stands on ${base.file}, in another directory: a deletion there asks only the images of that directory whether they need a ` +
    'snapshot, and a mount shows such an image with --allow-outside-base only'
  );
}
