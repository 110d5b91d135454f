/** Tries to open an image without root's rights, and prints the code of the error. */
import { Image, isPcowError } from '../../src/engine/index.js';

// Loads the addon first, because it may be where only root can read.
await Image.open('/nonexistent').catch(() => undefined);
process.seteuid?.(65534);
try {
  await Image.open(process.argv[2] ?? '');
  console.log('opened');
} catch (error) {
  console.log(isPcowError(error) ? `${error.code}: ${error.message}` : String(error));
}
