/**
 * Traces (docs/registry.md): the pieces that the readers of an image needed, in their order. A trace
 * is a hint: it decides what is fetched first, never what an image contains.
 */
import { jsonObject } from './json-object.js';
import { MOST_LAYERS } from './manifest.js';

/** A piece that was needed. */
export interface Touch {
  /** The number of the layer in the artifact: 0 is the lowest one. */
  layer: number;
  /** The number of the piece. */
  piece: number;
}

/** Of one trace: 16 GiB of pieces. */
export const MOST_TOUCHES = 1 << 16;

export function encodeTrace(touches: readonly Touch[]): Buffer {
  return Buffer.from(
    JSON.stringify({ version: 1, pieces: touches.map(({ layer, piece }) => [layer, piece]) }),
  );
}

/** null: it is not a trace. Whether its pieces exist is not checked. */
export function parseTrace(bytes: Buffer): Touch[] | null {
  const { version, pieces } = jsonObject(bytes);
  if (version !== 1 || !Array.isArray(pieces) || pieces.length > MOST_TOUCHES) return null;
  const touches: Touch[] = [];
  for (const pair of pieces as unknown[]) {
    const [layer, piece] = Array.isArray(pair) ? (pair as unknown[]) : [];
    if (!isBelow(layer, MOST_LAYERS) || !isBelow(piece, Number.MAX_SAFE_INTEGER)) return null;
    touches.push({ layer, piece });
  }
  return touches;
}

function isBelow(value: unknown, end: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) < end;
}
