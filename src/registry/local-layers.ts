/**
 * What an image on this machine has already of an image in a registry. An identity that is equal
 * proves nothing: it comes from whoever wrote the manifest. So the local content is read, and must
 * be what the indexes of the registry say, piece by piece.
 */
import type { Image } from '../engine/index.js';
import { ExportPlan, type Part } from '../stream/plan.js';
import { canonicalPieces } from './canonical.js';
import type { ImageConfig } from './manifest.js';
import { NO_DIGEST, type PieceIndex } from './piece-index.js';
import { sha256 } from './push.js';

/** The result of layersThere(). */
export interface LayersThere {
  /** How many of the lowest layers the image has. */
  count: number;
  /** The name of a snapshot that has the identity of the next layer, but another content. */
  different: string | null;
}

/** `indexOf`: of a layer in the registry. */
export async function layersThere(
  image: Image,
  { layers }: ImageConfig,
  indexOf: (layer: number) => Promise<PieceIndex>,
  signal: AbortSignal | undefined,
): Promise<LayersThere> {
  const identities = layers.map(({ snapshot }) => snapshot.identity);
  const newest = image
    .snapshots({ countData: false })
    .filter(({ identity }) => identities.includes(identity))
    .sort((one, other) => identities.indexOf(one.identity) - identities.indexOf(other.identity))
    .at(-1);
  if (newest === undefined) return { count: 0, different: null };
  const plan = await ExportPlan.make(image, newest.id);
  try {
    let below: Part | null = null;
    for (const [at, { snapshot, size }] of layers.entries()) {
      const part = plan.parts.find((it) => it.snapshot?.identity === snapshot.identity);
      if (part === undefined || !standsOn(part, below)) return { count: at, different: null };
      const same = part.layer.size === size && (await isSame({ ...part, from: below }, await indexOf(at), signal));
      if (!same) return { count: at, different: part.snapshot?.name ?? '' };
      below = { ...part, from: below };
    }
    return { count: layers.length, different: null };
  } finally {
    await plan.close();
  }
}

/** Whether the differences of the two can be read from the tables: see extentsOf() in canonical.ts. */
function standsOn(part: Part, below: Part | null): boolean {
  const base = part.image.info().base;
  if (below === null) return part.from === null;
  return below.image === part.image || base?.layer === below.layer.id;
}

async function isSame(part: Part, index: PieceIndex, signal: AbortSignal | undefined): Promise<boolean> {
  let at = 0;
  for await (const { number, data, zero, bytes } of canonicalPieces(part, signal)) {
    if (at === index.count) return false;
    const piece = index.piece(at++);
    if (piece.number !== number || piece.data !== data || piece.zero !== zero) return false;
    if (!piece.content.equals(bytes.length === 0 ? NO_DIGEST : sha256(bytes))) return false;
  }
  return at === index.count;
}
