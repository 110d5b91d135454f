/** Fetches what lazy images lack, in their mount if they have one. */
import { PcowError } from '../engine/index.js';
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
    const { lazy, remoteBytes } = await withImage(file, {}, (open) => open.info());
    if (!lazy) continue;
    const target = file === image.file ? image : await findImage(file, options);
    found.push({ image: target, remote: remoteBytes });
  }
  return found;
}

/**
 * Fetches everything that a lazy image lacks; then it is an ordinary image. What has arrived is
 * kept if it is stopped, or if the registry fails. Errors: those of pullImage().
 */
export async function prefetchImage(
  { file, name, mount }: ImageTarget,
  options: WorkOptions = {},
): Promise<void> {
  if (mount !== null) {
    await askForWork(mount, name, 'prefetch', 'now', options);
    return;
  }
  await withImage(file, { write: true }, async (image) => {
    const { Fetcher } = await import('../registry/fetcher.js');
    const fetcher = await Fetcher.open(image);
    if (fetcher === null) return;
    try {
      await fetcher.prefetch(options);
    } finally {
      await fetcher.close();
    }
    if (image.info().lazy)
      throw new PcowError('PCOW_IO', `${name} still lacks bytes that its source does not describe`);
  });
}
