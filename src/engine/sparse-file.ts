import { addon } from './native.js';

/**
 * The next range of an open file that holds data, as its filesystem reports it: from `start` to
 * before `end`. Both are `size` if there is no data from `from` on. On filesystems that do not
 * support holes everything is data.
 */
export function nextData(
  descriptor: number,
  from: number,
  size: number,
): { start: number; end: number } {
  const [start, end] = addon().nextData(descriptor, from, size);
  return { start, end };
}
