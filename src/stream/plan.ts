/**
 * Plans an export: which layers of an image and of its bases become streams, in which order, under
 * which names, and as changes on which other layer. Everything is looked up once, by the ids of
 * layers, which stay the same when the images change meanwhile.
 */
import path from 'node:path';
import {
  type BaseInfo,
  FORBIDDEN_IN_NAMES,
  Image,
  type LayerInfo,
  MAX_NAME_LENGTH,
  PcowError,
} from '../engine/index.js';
import type { Named } from './header.js';

/** A layer id that no image has: nothing is read from it. */
export const NO_LAYER = 0;

/** A layer that is exported. */
export interface Part {
  image: Image;
  layer: Pick<LayerInfo, 'id' | 'size' | 'created'>;
  /** Its name in the export; null: what the image holds beyond its snapshots. */
  snapshot: Named | null;
  /** A deleted snapshot on which several layers stand. */
  hidden: boolean;
  /** The part on which it stands; null: none. */
  from: Part | null;
}

/** An image of the chain. */
interface Storey {
  image: Image;
  base: BaseInfo | null;
  /** By id, ascending. */
  layers: Map<number, LayerInfo>;
  /** The layer on which the image above stands, or the one to export. null: the whole image. */
  top: number | null;
}

/** The image, and its bases, which are opened here; close() closes them. */
export class ExportPlan {
  private constructor(
    private readonly storeys: readonly Storey[],
    readonly parts: readonly Part[],
  ) {}

  /** `top`: the id of the layer to export, with those on which it stands. null: the whole image. */
  static async make(image: Image, top: number | null = null): Promise<ExportPlan> {
    const storeys: Storey[] = [storeyOf(image, top)];
    try {
      for (let [above] = storeys; above?.base; [above] = storeys) {
        const { resolved, uuid, layer } = above.base;
        const base = await Image.open(resolved);
        storeys.unshift(storeyOf(base, layer));
        if (base.info().uuid !== uuid || !storeys[0]?.layers.has(layer)) throw moved(above.image);
      }
      return new ExportPlan(storeys, partsOf(storeys));
    } catch (error) {
      await closeBases(storeys);
      throw error;
    }
  }

  /**
   * Fails if an image has got another base since: data that was read before and after may not fit
   * together.
   */
  checkBases(): void {
    for (const { image, base } of this.storeys) {
      const now = image.info().base;
      if (now?.uuid !== base?.uuid || now?.layer !== base?.layer) throw moved(image);
    }
  }

  close(): Promise<void> {
    return closeBases(this.storeys);
  }
}

function storeyOf(image: Image, top: number | null): Storey {
  const { base } = image.info();
  return { image, base, layers: new Map(image.layers().map((layer) => [layer.id, layer])), top };
}

function moved(image: Image): PcowError {
  return new PcowError(
    'PCOW_BUSY',
    `${image.info().path} got another base during the export: export it again`,
  );
}

/** The last one is the image itself, which belongs to the caller. */
async function closeBases(storeys: readonly Storey[]): Promise<void> {
  for (const { image } of storeys.slice(0, -1)) await image.close();
}

/** In an order in which everything stands on earlier parts. */
function partsOf(storeys: readonly Storey[]): Part[] {
  const names = new Names();
  const parts: Part[] = [];
  let ground: Part | null = null;
  for (const storey of storeys) {
    const made = new Map<number, Part>();
    const wanted = wantedOf(storey);
    const exported = new Set(wanted);
    const roots = wanted.filter((layer) => nearest(storey, layer, exported) === undefined);
    if (ground === null && roots.length > 1) {
      ground = nothing(storey, Math.min(...roots.map(({ size }) => size)), names);
      parts.push(ground);
    }
    for (const layer of wanted) {
      const below = nearest(storey, layer, exported);
      const part: Part = {
        image: storey.image,
        layer,
        snapshot: layer.active ? null : names.give(layer, storey.image),
        hidden: layer.hidden,
        from: (below && made.get(below.id)) ?? ground,
      };
      made.set(layer.id, part);
      parts.push(part);
    }
    ground = (storey.top === null ? null : made.get(storey.top)) ?? null;
  }
  return parts;
}

/**
 * The layers to export. From a base: its snapshots below the layer that the image stands on, and
 * that layer. From the image: its snapshots, and deleted snapshots on which several layers stand,
 * because their data would be exported several times otherwise. By ascending ids, so that parents
 * come first and the active layer is last.
 */
function wantedOf({ layers, top }: Storey): LayerInfo[] {
  if (top === null) {
    const children = new Map<number | null, number>();
    for (const { parent } of layers.values()) children.set(parent, (children.get(parent) ?? 0) + 1);
    return [...layers.values()].filter(({ id, hidden }) => !hidden || (children.get(id) ?? 0) > 1);
  }
  const below: LayerInfo[] = [];
  for (let next = layers.get(top); next !== undefined; next = parentOf(layers, next)) {
    if (next.id === top || next.name !== null) below.push(next);
  }
  return below.reverse();
}

function parentOf(layers: Storey['layers'], { parent }: LayerInfo): LayerInfo | undefined {
  return parent === null ? undefined : layers.get(parent);
}

/** The nearest layer below that is exported, too. */
function nearest(
  { layers }: Storey,
  layer: LayerInfo,
  exported: ReadonlySet<LayerInfo>,
): LayerInfo | undefined {
  let next = parentOf(layers, layer);
  while (next !== undefined && !exported.has(next)) next = parentOf(layers, next);
  return next;
}

/** An export has one root. If an image has several, an empty snapshot is put below them. */
function nothing({ image }: Storey, size: number, names: Names): Part {
  const layer = { id: NO_LAYER, size, created: new Date(0), name: null, identity: null };
  return { image, layer, snapshot: names.give(layer, image), hidden: true, from: null };
}

/** Names and identities that can exist together in one image. */
class Names {
  readonly #taken = new Set<string>();

  give({ id, name, identity }: Pick<LayerInfo, 'id' | 'name' | 'identity'>, image: Image): Named {
    return {
      name: this.#free(name ?? `deleted-${id}`, image),
      identity: identity ?? 'ffffffffffffffff',
    };
  }

  #free(name: string, image: Image): string {
    const own = path
      .basename(image.info().path, '.pcow')
      .replace(new RegExp(FORBIDDEN_IN_NAMES, 'gu'), '-');
    let free = name;
    for (let number = 1; this.#taken.has(free); number++) {
      const after = number === 1 ? '' : `.${number}`;
      free = shortened(`${own}.${name}`, MAX_NAME_LENGTH - Buffer.byteLength(after)) + after;
    }
    this.#taken.add(free);
    return free;
  }
}

/** As many whole characters as fit into this number of bytes. */
function shortened(text: string, bytes: number): string {
  let short = '';
  let length = 0;
  for (const character of text) {
    length += Buffer.byteLength(character);
    if (length > bytes) break;
    short += character;
  }
  return short;
}
