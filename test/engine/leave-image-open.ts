/** Writes to an image and ends without closing it, with a sync in progress that is not awaited. */
import { Image } from '../../src/engine/index.js';

const image = await Image.open(process.argv[2] ?? '', { write: true });
await image.write(Buffer.from([42]), 12345);
void image.sync();
