/**
 * A worker thread that always has operations on its image in progress. Sends one message when it
 * begins.
 */
import { parentPort, workerData } from 'node:worker_threads';

import { Image } from '../../src/engine/index.js';

const image = await Image.open(workerData as string, { write: true });
let begun = 0;
let running = 0;
for (;;) {
  while (running < 50) {
    ++running;
    void oneMore(++begun).finally(() => --running);
  }
  if (begun === 50) parentPort?.postMessage('busy');
  await image.sync();
}

async function oneMore(number: number): Promise<void> {
  if (number % 10 === 0) {
    await image.snapshot(`s${number}`);
    await image.delete(`s${number}`);
  } else {
    await image.write(Buffer.alloc(8192, number), (number % 500) * 8192);
  }
}
