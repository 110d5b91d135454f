/** Fetches what lazy images lack, in their mount if they have one. */
import { PcowError } from '../engine/index.js';
import { WITHOUT_LIMIT } from '../images/control-names.js';
import { findImage, type ImageTarget } from '../images/find-image.js';
import { chainOf, withImage } from '../images/with-image.js';
import { askForWork, type WorkOptions } from './control.js';

/** A lazy image, and how much of it is not here. */
export interface LazyImage {
  /** The image. */
  image: ImageTarget;
  /** Bytes. */
  remote: number;
}

/** The image and its bases, as far as they are lazy; the uppermost one first. */
export async function lazyImagesOf(
  image: ImageTarget,
  options: WorkOptions = {},
): Promise<LazyImage[]> {
  const found: LazyImage[] = [];
  for (const file of new Set(await chainOf(image.file))) {
    const remote = await withImage(file, {}, (open) =>
      open.info().lazy ? open.remoteBytes() : null,
    );
    if (remote === null) continue;
    const target = file === image.file ? image : await findImage(file, options);
    found.push({ image: target, remote });
  }
  return found;
}

/** For prefetchImage(). */
export interface PrefetchOptions extends WorkOptions {
  /** Remove the limit of the image. Default: fail if everything is more than that. */
  noLimit?: boolean | undefined;
}

/**
 * Fetches everything that a lazy image lacks; then it is an ordinary image. What has arrived is
 * kept if it is stopped, or if the registry fails. Errors: those of pullImage().
 */
export async function prefetchImage(
  { file, name, mount }: ImageTarget,
  options: PrefetchOptions = {},
): Promise<void> {
  const { noLimit = false, ...work } = options;
  if (mount !== null) {
    await askForWork(mount, name, 'prefetch', noLimit ? WITHOUT_LIMIT : 'now', work);
    return;
  }
  await withImage(file, { write: true }, async (image) => {
    const { Fetcher } = await import('../registry/fetcher.js');
    const fetcher = await Fetcher.open(image);
    if (fetcher === null) return;
    try {
      if (noLimit) await fetcher.removeLimit();
      await fetcher.prefetch(work);
    } finally {
      await fetcher.close();
    }
    if (image.info().lazy)
      throw new PcowError('PCOW_IO', `${name} still lacks bytes that its source does not describe`);
  });
}
