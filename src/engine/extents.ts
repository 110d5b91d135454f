/** The engine returns extents in batches; this makes one sequence from them. */
import { PcowError } from './errors.js';
import type { NativeExtentBatch } from './native.js';
import type { ChainLink, Extent } from './types.js';

/** The last one: data that is remote. */
const KINDS = ['data', 'zero', 'hole', 'data'] as const;
const REMOTE = 3;

interface Walked {
  /** The path, for messages. */
  image: () => string;
  /** The NativeExtentBatch.chainState that every batch must have; undefined: any. */
  chain?: string | undefined;
}

/**
 * Requests batch after batch, and joins extents that were split at the end of a batch. An aborted
 * signal ends it with PCOW_CANCELLED. The layer may grow meanwhile: the walk ends where the layer
 * ended when the walk began.
 */
export async function* extentsOf(
  nextBatch: (offset: number) => Promise<NativeExtentBatch>,
  signal: AbortSignal | undefined,
  { image, chain }: Walked,
): AsyncGenerator<Extent, void> {
  let held: Extent | null = null;
  let offset = 0;
  let size: number | undefined;
  while (size === undefined || offset < size) {
    if (signal?.aborted) {
      throw new PcowError('PCOW_CANCELLED', 'the walk over the image was stopped', {
        cause: signal.reason,
      });
    }
    const batch = await nextBatch(offset);
    size ??= batch.size;
    if (batch.size < size) {
      throw new PcowError('PCOW_BUSY', `${image()} became smaller during the read: try again`);
    }
    if (chain !== undefined && batch.chainState !== chain) {
      throw new PcowError(
        'PCOW_BUSY',
        `the layers of ${image()} changed while they were listed (a snapshot was deleted, or the base changed): try again`,
      );
    }
    for (const extent of unpack(batch)) {
      if (extent.offset >= size) break;
      extent.length = Math.min(extent.length, size - extent.offset);
      if (held !== null && continues(held, extent)) {
        held.length += extent.length;
        continue;
      }
      if (held !== null) yield held;
      held = extent;
    }
    offset = batch.next;
  }
  if (held !== null) yield held;
}

function* unpack({ extents, chain }: NativeExtentBatch): Generator<Extent> {
  for (let at = 0; at < extents.length; at += 5) {
    const [offset = 0, length = 0, kind = 0, depth = 0, place = 0] = extents.subarray(at, at + 5);
    const name = KINDS[kind] ?? 'data';
    yield {
      offset,
      length,
      kind: name,
      depth: name === 'hole' ? null : depth,
      layer: name === 'hole' ? null : (chain[depth] ?? null),
      place: name === 'data' && kind !== REMOTE ? place : null,
      ...(kind === REMOTE && { remote: true as const }),
    };
  }
}

function continues(before: Extent, after: Extent): boolean {
  return (
    before.offset + before.length === after.offset &&
    before.kind === after.kind &&
    before.remote === after.remote &&
    before.depth === after.depth &&
    sameLayer(before.layer, after.layer) &&
    (before.place === null || before.place + before.length === after.place)
  );
}

/** Between two batches a snapshot may have been deleted, and then depths mean other layers. */
function sameLayer(before: ChainLink | null, after: ChainLink | null): boolean {
  return before?.path === after?.path && before?.layer === after?.layer;
}
