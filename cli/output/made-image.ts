/** The JSON of commands that make an image. */
import type { ImageInfo } from '../../src/engine/index.js';
import type { ImageTarget } from '../../src/images/find-image.js';

export function madeImage(target: ImageTarget, { size, blockSize, base }: ImageInfo): object {
  return { image: target.file, size, blockSize, base };
}
