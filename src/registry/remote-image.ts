/** An image in a registry or layout: its manifest and config, and the indexes of its layers. */
import { digestOf } from './digest.js';
import { corrupt, type ImageConfig, parseConfig, parseManifest } from './manifest.js';
import { PieceIndex } from './piece-index.js';
import { type ReadableStore, readWhole } from './store.js';

export class RemoteImage {
  /** The index that was read last: one is enough, and indexes may be large. */
  #index: { layer: number; index: PieceIndex } | null = null;

  private constructor(
    readonly store: ReadableStore,
    /** Of the manifest. */
    readonly digest: string,
    /** Bytes of the manifest. */
    readonly manifestSize: number,
    readonly config: ImageConfig,
    readonly signal: AbortSignal | undefined,
  ) {}

  static async read(store: ReadableStore, signal?: AbortSignal): Promise<RemoteImage> {
    const manifest = await store.readManifest();
    const { config, blobs } = parseManifest(manifest, store.name);
    const parsed = parseConfig(await readWhole(store, config), blobs, store.name);
    return new RemoteImage(store, digestOf(manifest), manifest.length, parsed, signal);
  }

  get name(): string {
    return this.store.name;
  }

  /** The index of a layer, checked. */
  async indexOf(layer: number): Promise<PieceIndex> {
    if (this.#index?.layer === layer) return this.#index.index;
    this.#index = null;
    const { index: blob, size, data, bytes } = this.config.layers[layer]!;
    const what = `${this.name} is damaged: its index ${blob.digest}`;
    const index = PieceIndex.parse(await readWhole(this.store, blob), size, data?.size ?? 0, what);
    if (index.data !== bytes)
      throw corrupt(this.name, `its config and its index ${blob.digest} contradict each other`);
    this.#index = { layer, index };
    return index;
  }
}
