import { addon } from './native.js';

/**
 * Where an open file holds data next, as its filesystem tells: from `start` to before `end`, which are both `size` where
 * there is none from `from` on. On filesystems without holes everything is data.
 */
export function nextData(descriptor: number, from: number, size: number): { start: number; end: number } {
  const [start, end] = addon().nextData(descriptor, from, size);
  return { start, end };
}
