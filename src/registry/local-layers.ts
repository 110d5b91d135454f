/**
 * The layers of a registry's image that an image on this machine already has. An equal identity
 * proves nothing, because the author of the manifest chose it. So the local content is read, and
 * must match the registry's indexes, piece by piece.
 */
import type { Image, SnapshotInfo } from '../engine/index.js';
import { ExportPlan, type Part } from '../stream/plan.js';
import { canonicalPieces } from './canonical.js';
import { type PieceIndex, recordDigest } from './piece-index.js';
import type { RemoteImage } from './remote-image.js';

/** The result of layersThere(). */
export interface LayersThere {
  /** How many of the lowest layers the image has. */
  count: number;
  /** The name of a snapshot that has the identity of the next layer, but different content. */
  different: string | null;
  /**
   * The uppermost of these layers if it is a snapshot of the image itself, not of its base;
   * otherwise null.
   */
  top: SnapshotInfo | null;
}

export async function layersThere(image: Image, remote: RemoteImage): Promise<LayersThere> {
  const { layers } = remote.config;
  const identities = layers.map(({ snapshot }) => snapshot.identity);
  const snapshots = image.snapshots({ countData: false });
  const there = (count: number, different: string | null = null): LayersThere => {
    const top = snapshots.find(({ identity }) => identity === identities[count - 1]);
    return { count, different, top: top ?? null };
  };
  const newest = snapshots
    .filter(({ identity }) => identities.includes(identity))
    .sort((one, other) => identities.indexOf(one.identity) - identities.indexOf(other.identity))
    .at(-1);
  if (newest === undefined) return there(0);
  const plan = await ExportPlan.make(image, newest.id);
  try {
    let below: Part | null = null;
    for (const [at, { snapshot, size }] of layers.entries()) {
      const part = plan.parts.find((it) => it.snapshot?.identity === snapshot.identity);
      if (part === undefined || !standsOn(part, below)) return there(at);
      const same =
        part.layer.size === size &&
        (await isSame({ ...part, from: below }, await remote.indexOf(at), remote.signal));
      if (!same) return there(at, part.snapshot?.name ?? '');
      below = { ...part, from: below };
    }
    return there(layers.length);
  } finally {
    await plan.close();
  }
}

/**
 * Whether the differences of the two can be read from the tables: see extentsOf() in canonical.ts.
 */
function standsOn(part: Part, below: Part | null): boolean {
  const base = part.image.info().base;
  if (below === null) return part.from === null;
  return below.image === part.image || base?.layer === below.layer.id;
}

async function isSame(
  part: Part,
  index: PieceIndex,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  let at = 0;
  for await (const { number, data, zero, bytes } of canonicalPieces(part, signal)) {
    if (at === index.count) return false;
    const piece = index.piece(at++);
    if (piece.number !== number || piece.data !== data || piece.zero !== zero) return false;
    if (!piece.content.equals(recordDigest(bytes))) return false;
  }
  return at === index.count;
}
