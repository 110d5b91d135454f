/**
 * The layers of a lazy image as its source describes them, and which of their pieces are still
 * remote.
 */
import { type Image, PcowError } from '../engine/index.js';
import { type Origin, SourceStore } from './lazy-source.js';
import type { Blob } from './manifest.js';
import { bitsOf, PIECE, type Piece, type PieceIndex, UNIT } from './piece-index.js';
import { RemoteImage } from './remote-image.js';

export class LazyLayer {
  /** A flag for each piece of the index. */
  readonly #remote: Uint8Array;

  constructor(
    /** In the image file. */
    readonly id: number,
    /** In the artifact: 0 is the lowest one. */
    readonly position: number,
    /** The name of the snapshot in the artifact. */
    readonly snapshot: string,
    /** Bytes of the image at this layer. */
    readonly size: number,
    readonly data: Blob,
    readonly index: PieceIndex,
  ) {
    this.#remote = new Uint8Array(index.count);
  }

  get pieces(): number {
    return this.index.count;
  }

  isRemote(at: number): boolean {
    return this.#remote[at] === 1;
  }

  setRemote(at: number, remote: boolean): void {
    this.#remote[at] = remote ? 1 : 0;
  }

  /** The places in the index of the pieces that are still remote, in ascending order. */
  *remote(): Generator<number> {
    for (let at = this.#remote.indexOf(1); at >= 0; at = this.#remote.indexOf(1, at + 1)) yield at;
  }

  /** Bytes of data in these pieces. */
  get remoteBytes(): number {
    let bytes = 0;
    for (const at of this.remote()) bytes += dataOf(this.index.piece(at));
    return bytes;
  }
}

/** Bytes of data in a piece. */
export function dataOf({ data }: Piece): number {
  return bitsOf(data) * UNIT;
}

export interface LazyLayers {
  origin: Origin;
  /** By their ids in the image file: those that have data. */
  layers: Map<number, LazyLayer>;
}

/** The source of an image: where its bytes are, and what is known of them. null: it is not lazy. */
export async function sourceOf(
  image: Image,
): Promise<{ origin: Origin; remote: RemoteImage } | null> {
  const source = await image.source();
  if (source === null) return null;
  const store = SourceStore.parse(source, image.info().path);
  return { origin: store.origin, remote: await RemoteImage.read(store) };
}

/** Reads the source of a lazy image, and finds out what is still remote. null: it is not lazy. */
export async function lazyLayersOf(image: Image): Promise<LazyLayers | null> {
  const source = await sourceOf(image);
  if (source === null) return null;
  const { origin, remote } = source;
  const file = image.info().path;
  const ids = new Map(image.layers().map(({ identity, id }) => [identity, id]));
  const layers = new Map<number, LazyLayer>();
  for (const [at, { snapshot, size, data }] of remote.config.layers.entries()) {
    const id = ids.get(snapshot.identity);
    if (id === undefined || data === null) continue; // its snapshot was deleted
    const layer = new LazyLayer(id, at, snapshot.name, size, data, await remote.indexOf(at));
    for await (const piece of remotePiecesOf(image, id)) {
      const there = layer.index.find(piece);
      if (there === null) {
        throw new PcowError(
          'PCOW_CORRUPT',
          `${file} lacks bytes of ${snapshot.name} that its source does not have: they are gone`,
          { next: 'pull the image again' },
        );
      }
      layer.setRemote(there, true);
    }
    layers.set(id, layer);
  }
  return { origin, layers };
}

/** The numbers of the pieces of which a layer lacks something. */
async function* remotePiecesOf(image: Image, layer: number): AsyncGenerator<number> {
  const blocks = PIECE / image.info().blockSize;
  let last = -1;
  for (let from: number | null = 0; from !== null;) {
    const { ranges, next } = await image.remoteRanges(layer, from);
    for (const { block } of ranges) {
      const piece = Math.floor(block / blocks);
      if (piece === last) continue;
      last = piece;
      yield piece;
    }
    from = next;
  }
}
