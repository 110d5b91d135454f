/** Lazy images: the methods of Image with which they are made, filled and completed. */
import path from 'node:path';

import test from 'ava';

import { checkImage } from '../../src/engine/check.js';
import { type PcowError } from '../../src/engine/errors.js';
import { Image } from '../../src/engine/image.js';
import type { Extent } from '../../src/engine/types.js';
import { scratchDirectory } from '../helpers/scratch.js';

const BLOCK = 65536;
const MASK = 0xffff;

/** Blocks with these masks, as Image.markRemote() takes them. */
function entries(...blocks: [number, number][]): Buffer {
  const bytes = Buffer.alloc(blocks.length * 8);
  for (const [i, [block, mask]] of blocks.entries()) {
    bytes.writeUInt32LE(block, i * 8);
    bytes.writeUInt16LE(mask, i * 8 + 4);
  }
  return bytes;
}

test('a lazy image says which block it lacks, is filled, and becomes an ordinary one', async (t) => {
  const file = path.join(await scratchDirectory(t), 'lazy.pcow');
  await Image.create(file, { size: 16 * BLOCK });
  const image = await Image.open(file, { write: true });
  t.is(await image.source(), null);
  await t.throwsAsync(image.markRemote(entries([1, MASK])), { code: 'PCOW_INVALID' });
  await image.setSource(Buffer.from('somewhere'));
  await image.markRemote(entries([1, MASK], [2, 3]));
  await image.snapshot('v1');
  const layer = image.layerOf('v1');
  t.deepEqual(await image.source(), Buffer.from('somewhere'));
  t.true(image.info().lazy);
  t.is(await image.remoteBytes(), BLOCK + 8192);

  const read = () => image.read(Buffer.alloc(2 * BLOCK), BLOCK);
  const missing = await t.throwsAsync<PcowError>(read, { code: 'PCOW_REMOTE' });
  t.deepEqual(missing?.remote, { path: file, uuid: image.info().uuid, layer, block: 1 });
  t.deepEqual(await image.remoteRanges(layer, 0), {
    ranges: [
      { block: 1, mask: MASK },
      { block: 2, mask: 3 },
    ],
    next: null,
  });
  const data: Extent[] = [];
  for await (const extent of image.map()) if (extent.kind === 'data') data.push(extent);
  t.like(data, [{ offset: BLOCK, length: BLOCK + 8192, place: null, remote: true }]);

  await t.throwsAsync(image.setSource(null), { code: 'PCOW_REMOTE' });
  await t.throwsAsync(image.fill(layer, 1, Buffer.alloc(5)), { code: 'PCOW_INVALID' });
  t.is(await image.fill(layer, 0, Buffer.alloc(3 * BLOCK, 'x')), 2);
  t.is(await image.fill(layer, 0, Buffer.alloc(3 * BLOCK, 'y')), 0);
  await image.setSource(null);
  t.false(image.info().lazy);
  const bytes = Buffer.alloc(2 * BLOCK);
  await image.read(bytes, BLOCK);
  const wanted = Buffer.alloc(2 * BLOCK);
  wanted.fill('x', 0, BLOCK + 8192);
  t.deepEqual(bytes, wanted);
  await image.close();
  const report = await checkImage(file);
  t.is(report.damages + report.leaks + report.remote, 0);
});
