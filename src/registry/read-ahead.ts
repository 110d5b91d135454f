/** Which pieces a sequential reader will need next. */
import type { LazyLayer } from './lazy-layers.js';

/** Pieces: how far ahead of a reader that has been sequential for long. */
const FARTHEST = 32;
/** Readers that are followed; those that were quiet for longest are forgotten. */
const READERS = 16;

interface Reader {
  layer: LazyLayer;
  /** The place in the index of the last piece that it needed. */
  last: number;
  /** The place behind that piece, and behind those that were fetched ahead. */
  next: number;
  /** The number of pieces that were fetched ahead. */
  window: number;
}

export class ReadAhead {
  /** The one that moved last is the last one. */
  readonly #readers: Reader[] = [];

  /**
   * A reader needs the piece at this place, which was not there. Returns the places of those to
   * fetch ahead: twice as many whenever it goes on where the last ones end.
   */
  after(layer: LazyLayer, at: number): number[] {
    const known = this.#readers.findIndex(
      (it) => it.layer === layer && at <= it.next && at >= it.last,
    );
    const [reader = { layer, last: at, next: at + 1, window: 0 }] =
      known < 0 ? [] : this.#readers.splice(known, 1);
    this.#readers.push(reader);
    if (this.#readers.length > READERS) this.#readers.shift();
    const goesOn = at > reader.last;
    reader.last = at;
    // A reader that is before the end of what is fetched ahead is only fast.
    if (!goesOn || at < reader.next - 1) return [];
    reader.window = Math.min(FARTHEST, Math.max(1, reader.window * 2));
    const first = Math.max(at + 1, reader.next);
    reader.next = Math.min(layer.pieces, at + 1 + reader.window);
    return Array.from({ length: Math.max(0, reader.next - first) }, (_, ahead) => first + ahead);
  }
}
