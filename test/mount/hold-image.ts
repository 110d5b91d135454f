/** A process that has an image open for writing, and writes to it on request. */
import { Image } from '../../src/engine/index.js';

const image = await Image.open(process.argv[2] ?? '', { write: true });
process.on('message', (command: string) => {
  void (async () => {
    if (command === 'end') {
      await image.close();
      process.exit(0);
    }
    await image.write(Buffer.from('new'), 0);
    process.send?.('written');
  })();
});
process.send?.('open');
