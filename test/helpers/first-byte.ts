/** An image's content in short: the byte that it begins with. */
import { Image } from '../../src/engine/index.js';

/** Fills the beginning of an image (64 KiB) with a byte. */
export async function fillBeginning(file: string, byte: number): Promise<void> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(65536, byte), 0);
  await image.close();
}

export async function firstByte(file: string): Promise<number | undefined> {
  const image = await Image.open(file);
  const buffer = Buffer.alloc(1);
  await image.read(buffer, 0);
  await image.close();
  return buffer[0];
}
