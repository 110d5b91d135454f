/** A mount that takes questions and answers none, as soon as it is told so: DIRECTORY MOUNTPOINT. */
import { mountDirectory } from '../../src/mount/index.js';

const [directory = '', mountpoint = ''] = process.argv.slice(2);
await mountDirectory(directory, mountpoint);
process.on('message', () => {
  process.send?.('hangs');
  // When that has been sent.
  setTimeout(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0), 100);
});
process.send?.('mounted');
