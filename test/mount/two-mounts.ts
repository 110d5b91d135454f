/**
 * A process with two mounts, of which the second has no native operations: DIRECTORY MOUNTPOINT,
 * twice.
 */
import { mountDirectory } from '../../src/mount/index.js';

const [firstDirectory = '', firstPoint = '', secondDirectory = '', secondPoint = ''] =
  process.argv.slice(2);
const first = await mountDirectory(firstDirectory, firstPoint);
const second = await mountDirectory(secondDirectory, secondPoint);
process.on('message', () => {
  void Promise.all([first.unmount(), second.unmount()]).then(() => {
    process.disconnect(); // nothing else keeps this process alive
  });
});
process.send?.('mounted');
