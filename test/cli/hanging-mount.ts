/**
 * A mount that accepts requests and stops answering when it gets a message: DIRECTORY MOUNTPOINT.
 */
import { mountDirectory } from '../../src/mount/index.js';

const [directory = '', mountpoint = ''] = process.argv.slice(2);
await mountDirectory(directory, mountpoint);
process.on('message', () => {
  process.send?.('hangs');
  // When the message has been sent.
  setTimeout(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0), 100);
});
process.send?.('mounted');
