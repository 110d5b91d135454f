/**
 * Makes an image. If it stands on the present content of another image, that content is frozen
 * first.
 */
import path from 'node:path';
import { automaticName } from '../images/automatic-name.js';
import {
  type BaseOptions,
  exists,
  Image,
  type ImageInfo,
  mayBeReplaced,
  removeRemains,
  standingOn,
} from '../engine/index.js';
import { askImage, joinWords } from './control.js';
import { PcowError } from '../engine/errors.js';
import type { AskOptions } from '../images/mount-answers.js';
import { withImage } from '../images/with-image.js';
import { quote } from '../engine/quote.js';
import { formatSize } from '../images/sizes.js';
import type { ImageTarget, Target } from '../images/find-image.js';

/** For makeImage(). */
export interface MakeOptions extends AskOptions {
  /** Bytes; default: the base's. */
  size?: number | undefined;
  /** Bytes; default: the base's, or the general default. */
  blockSize?: number | undefined;
  /** The image or snapshot to stand on; default: none. */
  base?: Target | undefined;
  /** Replace an existing file; never one that is in use, or that other images stand on. */
  force?: boolean | undefined;
}

/**
 * Makes a new image at the path that newImage() has found, and describes it. If the base's active
 * layer has data, the base is frozen first, in its mount if it has one. Everything that can be
 * refused is refused before that. Errors: those of Image.create().
 */
export async function makeImage(target: ImageTarget, options: MakeOptions): Promise<ImageInfo> {
  const { size, blockSize, base, force = false, onWait } = options;
  await checkTarget(target, force);
  await removeRemains(path.dirname(target.file));
  if (base === undefined) {
    await Image.create(target.file, { size, blockSize, force });
  } else {
    await checkBase(base, target, { size, blockSize });
    const asItIs = size === undefined && blockSize === undefined && !force;
    if (
      base.image.mount !== null &&
      base.image.mount.mountpoint === target.mount?.mountpoint &&
      asItIs
    ) {
      const { mount, name } = base.image;
      await askImage(mount, name, 'clone', joinWords(target.name, base.snapshot), { onWait });
    } else {
      await onFrozenLayer(
        base,
        (standing) => Image.create(target.file, { size, blockSize, force, base: standing }),
        {
          onWait,
        },
      );
    }
  }
  return withImage(target.file, {}, (image) => image.info());
}

/**
 * A new image replaces a file only with --force, and never one that is in use or on which other
 * images stand.
 */
export async function checkTarget(
  target: ImageTarget,
  force: boolean,
  sources: readonly string[] = [],
): Promise<void> {
  if (!(await exists(target.file))) return;
  if (!force) {
    throw new PcowError('PCOW_EXISTS', `${target.file} exists already`, {
      next: 'choose another name, or replace it with --force',
    });
  }
  await mayBeReplaced(target.file, { replace: true, sources });
}

/** Checks what can be known about a base before it is frozen. */
export async function checkBase(
  { image, snapshot }: Target,
  target: ImageTarget,
  { size, blockSize }: Pick<MakeOptions, 'size' | 'blockSize'> = {},
): Promise<void> {
  const loop = (on: string) =>
    new PcowError('PCOW_BASE_LOOP', `${quote(target.given)} can't stand on ${on}`, {
      next: 'choose another base',
    });
  if (image.file === target.file) throw loop('itself');
  await withImage(image.file, {}, (base) => {
    const info = base.info();
    if (info.chain.some((link) => link.path === target.file))
      throw loop(`${quote(image.given)}, which stands on ${quote(target.given)}`);
    if (snapshot !== null) {
      base.layerOf(snapshot);
    }
    if (blockSize !== undefined && blockSize !== info.blockSize) {
      throw new PcowError(
        'PCOW_INVALID',
        `the base ${image.name} has blocks of ${formatSize(info.blockSize)}, and an image that stands on it must have the same, not ${formatSize(blockSize)}`,
        { next: 'leave the block size out to take the base’s' },
      );
    }
    const baseSize =
      snapshot === null ? info.size : base.snapshots().find(({ name }) => name === snapshot)?.size;
    if (size !== undefined && baseSize !== undefined && size < baseSize) {
      throw new PcowError(
        'PCOW_INVALID',
        `the size ${size} is smaller than the base ${image.name}${snapshot === null ? '' : `@${snapshot}`}, which has ${baseSize} bytes`,
        { next: 'leave the size out to take the base’s' },
      );
    }
  });
}

/**
 * Calls `work` with the frozen layer of `base` to stand on. If the base's active layer has data, it
 * is frozen first, so that the base can still be written. The layer cannot be removed until `work`
 * is done, and the image that stands on it is durable.
 */
export async function onFrozenLayer<T>(
  base: Target,
  work: (base: BaseOptions) => Promise<T>,
  options: AskOptions = {},
): Promise<T> {
  const { image, snapshot } = base;
  if (snapshot !== null) {
    return standingOn(image.file, () => work({ path: image.file, snapshot }));
  }
  if (image.mount === null) {
    return withImage(image.file, { write: true }, async (open) => {
      const layer = await open.freezeForClone(automaticName());
      return standingOn(image.file, () => work({ path: image.file, layer }));
    });
  }
  const name = automaticName();
  await askImage(image.mount, image.name, 'snapshot', name, options);
  // Another process may have deleted it by now: then there is no such snapshot.
  return standingOn(image.file, () => work({ path: image.file, snapshot: name }));
}

/**
 * A warning for an image whose base is in another directory; null if the base is in the same one.
 */
export function distanceWarning(target: ImageTarget, base: ImageTarget): string | null {
  if (path.dirname(target.file) === path.dirname(base.file)) return null;
  return (
    `${target.name} stands on ${base.file}, in another directory. A deletion there checks only the images of that directory, ` +
    'and a mount shows this image only with --allow-outside-base'
  );
}
