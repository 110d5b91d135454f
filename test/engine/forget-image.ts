/**
 * Opens an image for writing, drops the reference, and waits until the garbage collector has closed
 * it: then it can be opened again.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { Image, isPcowError } from '../../src/engine/index.js';

const file = process.argv[2] ?? '';

async function openAndForget(): Promise<void> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.from([1]), 0);
  // Not awaited: the work itself keeps the image alive until it is done.
  void image.sync();
}

await openAndForget();
for (let attempt = 0; ; ++attempt) {
  globalThis.gc?.();
  await sleep(20);
  try {
    const again = await Image.open(file, { write: true });
    await again.close();
    break;
  } catch (error) {
    if (!isPcowError(error, 'PCOW_LOCKED') || attempt > 200) throw error;
  }
}
