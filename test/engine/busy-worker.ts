/** A worker thread that is always in the middle of something on its image. */
import { parentPort, workerData } from 'node:worker_threads';

import { Image } from '../../src/engine/index.js';

const image = await Image.open(workerData as string, { write: true });
let running = 0;
for (let i = 0; ; ++i) {
  while (running < 50) {
    ++running;
    const name = `s${i++}`;
    const work = i % 10 === 0 ? image.snapshot(name).then(() => image.delete(name)) : write(i);
    void work.finally(() => --running);
  }
  if (i === 52 || i === 53) parentPort?.postMessage('busy');
  await image.sync();
}

async function write(i: number): Promise<void> {
  await image.write(Buffer.alloc(8192, i), (i % 500) * 8192);
}
