/** Prints long lists to stdout in pieces, no faster than they are read. */
import { put, roomForMore } from './stdout.js';

export async function sayEach(lines: AsyncIterable<string>): Promise<void> {
  let piece = '';
  for await (const line of lines) {
    piece += line;
    if (piece.length >= 65536) {
      if (!put(piece)) await roomForMore();
      piece = '';
    }
  }
  put(piece);
}

/** A JSON array with one element on each line, as `qemu-img map` prints it. */
export async function* jsonLines(members: AsyncIterable<unknown>): AsyncGenerator<string> {
  let before = '[';
  for await (const member of members) {
    yield before + JSON.stringify(member);
    before = ',\n';
  }
  yield before === '[' ? '[]\n' : ']\n';
}
