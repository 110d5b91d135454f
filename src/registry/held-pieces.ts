/**
 * The pieces of a lazy image that are here, if it has a limit (docs/registry.md, "A limit"). Before
 * others are stored, what was neither fetched nor read for longest is given back.
 */
import createDebug from 'debug';
import type { Image } from '../engine/index.js';
import type { LazyLayer } from './lazy-layers.js';
import { blocksOf, encodeMarks } from './lazy-marks.js';
import { bitsOf, PIECE, type Piece, UNIT } from './piece-index.js';

const debug = createDebug('pcow:registry');

/** Each giving back costs syncs, so it makes room for more than is needed: this part of the limit. */
const PART = 16;

interface Held {
  layer: LazyLayer;
  at: number;
  /** Bytes on the disk. */
  bytes: number;
}

export class HeldPieces {
  /** What is looked at first when something is to be given back comes first. */
  readonly #order = new Map<string, Held>();
  /** Bytes on the disk, or about to be stored. */
  #bytes = 0;
  #givenBack = 0;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly image: Image,
    private readonly blockSize: number,
    layers: Iterable<LazyLayer>,
    readonly limit: number,
  ) {
    for (const layer of layers) {
      for (let at = 0; at < layer.pieces; at++) {
        if (layer.isRemote(at) || layer.index.piece(at).stored === 0) continue;
        this.#bytes += bytesOf(layer.index.piece(at), blockSize);
        this.add(layer, at);
      }
    }
  }

  /** Bytes that were given back since the image was opened. */
  get givenBack(): number {
    return this.#givenBack;
  }

  /**
   * Returns when so many bytes may be stored. If too little can be given back, more is stored than
   * the limit allows, because readers wait for it.
   */
  async makeRoom(bytes: number): Promise<void> {
    const room = this.#turn.then(async () => {
      const over = this.#bytes + bytes - this.limit;
      if (over > 0) await this.#giveBack(over + this.limit / PART);
      this.#bytes += bytes;
    });
    this.#turn = room.catch(() => undefined);
    return room;
  }

  /** For bytes for which there was room, and that were not stored. */
  notStored(bytes: number): void {
    this.#bytes -= bytes;
  }

  /** The piece has been stored. */
  add(layer: LazyLayer, at: number): void {
    const bytes = bytesOf(layer.index.piece(at), this.blockSize);
    const key = keyOf(layer, at);
    if (this.#order.has(key)) this.#bytes -= bytes; // it was there already
    this.#order.set(key, { layer, at, bytes });
  }

  async #giveBack(wanted: number): Promise<void> {
    const chosen = await this.#choose(wanted);
    const byLayer = new Map<LazyLayer, Held[]>();
    for (const held of chosen) byLayer.set(held.layer, [...(byLayer.get(held.layer) ?? []), held]);
    for (const [layer, pieces] of byLayer) {
      const blocks = pieces.map(({ at }) =>
        [...blocksOf(layer.index.piece(at), this.blockSize)].filter(({ data }) => data !== 0),
      );
      try {
        const given = await this.image.giveBack(layer.id, encodeMarks(blocks.flat()));
        for (const [number, { at, bytes }] of pieces.entries()) {
          if (!given.splice(0, blocks[number]!.length).includes(true)) continue;
          layer.setRemote(at, true);
          this.#bytes -= bytes;
          this.#givenBack += bytes;
        }
      } catch (error) {
        // A reader does not wait for this. If the disk fails, storing its bytes says so.
        debug('%s gives nothing back: %s', this.image.info().path, (error as Error).message);
        for (const held of pieces) this.#order.set(keyOf(held.layer, held.at), held);
      }
    }
  }

  /** What has been read since it was looked at last gets a second chance. */
  async #choose(wanted: number): Promise<Held[]> {
    const chosen: Held[] = [];
    let chances = this.#order.size;
    for (const [key, held] of this.#order) {
      if (wanted <= 0) break;
      const { layer, at, bytes } = held;
      const first = (layer.index.piece(at).number * PIECE) / this.blockSize;
      this.#order.delete(key);
      if (chances-- > 0 && (await this.image.takeUses(layer.id, first, PIECE / this.blockSize))) {
        this.#order.set(key, held); // at the end: the loop comes there
        continue;
      }
      wanted -= bytes;
      chosen.push(held);
    }
    return chosen;
  }
}

function keyOf(layer: LazyLayer, at: number): string {
  return `${layer.id} ${at}`;
}

/** What a piece takes on the disk: zeros in a block with data are stored with it. */
export function bytesOf(piece: Piece, blockSize: number): number {
  let bytes = 0;
  for (const { data, zero } of blocksOf(piece, blockSize))
    if (data !== 0) bytes += bitsOf(BigInt(data | zero)) * UNIT;
  return bytes;
}
