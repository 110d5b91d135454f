/** Opens images at rest for one task. */
import { Image, type OpenOptions } from '../engine/index.js';

/** Opens an image, works on it, and closes it. If closing fails, the work fails. */
export async function withImage<T>(
  file: string,
  options: OpenOptions,
  work: (image: Image) => T | Promise<T>,
): Promise<T> {
  const image = await Image.open(file, options);
  let result: T;
  try {
    result = await work(image);
  } catch (error) {
    // Report the first error; closing repeats it, or adds nothing.
    await image.close().catch(() => undefined);
    throw error;
  }
  await image.close();
  return result;
}

/** The files from which an image is read: its own, and those of its bases. */
export function chainOf(file: string): Promise<string[]> {
  return withImage(file, {}, (image) => image.chain().map((link) => link.path));
}
