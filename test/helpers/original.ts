/**
 * Makes image files of the original Pcow, with the layout that src/convert/original-image.ts
 * describes.
 */
import { open } from 'node:fs/promises';

export interface OriginalBlock {
  /** Of the virtual disk. */
  block: number;
  /** 0: the whole block was written. */
  bitmap?: number;
  /** A whole block. */
  bytes: Buffer;
}

/** `segments`: the blocks written before the first snapshot, between it and the second, … */
export async function makeOriginal(
  file: string,
  {
    blockSize = 65536,
    blocks,
    base = '',
    segments,
  }: {
    blockSize?: number;
    blocks: number;
    base?: string;
    segments: OriginalBlock[][];
  },
): Promise<void> {
  const capacity = (blockSize - 64) / 8;
  const handle = await open(file, 'w');
  try {
    let at = 0;
    for (const [number, segment] of segments.entries()) {
      const metas = Math.max(1, Math.ceil(segment.length / capacity));
      const head = Buffer.alloc(blockSize);
      head.writeInt32LE(blockSize, 0);
      head.writeInt32LE(blocks, 4);
      head.writeInt32LE(metas - 1, 8);
      head.write('NBJL', 12);
      if (number === 0) head.write(base, 16);
      await handle.write(head, 0, blockSize, at++ * blockSize);
      for (let meta = 0; meta < metas; ++meta) {
        const part = segment.slice(meta * capacity, (meta + 1) * capacity);
        const table = Buffer.alloc(blockSize);
        table.writeInt32LE(part.length, 0);
        for (const [i, { block, bitmap = 0 }] of part.entries()) {
          table.writeUInt32LE(block, 64 + i * 8);
          table.writeUInt32LE(bitmap, 68 + i * 8);
        }
        await handle.write(table, 0, blockSize, at++ * blockSize);
        for (const { bytes } of part) await handle.write(bytes, 0, blockSize, at++ * blockSize);
      }
    }
  } finally {
    await handle.close();
  }
}
