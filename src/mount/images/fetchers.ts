/** Finds the lazy image whose bytes a reader needs, and has them fetched. */
import path from 'node:path';
import { Image, PcowError, type RemoteBlock } from '../../engine/index.js';
import { imageNameOf } from '../../images/image-names.js';
import { log } from '../log.js';
import type { Place } from '../place.js';
import type { Catalog } from './catalog.js';
import { Fetching } from './fetching.js';
import type { ImageEntry } from './image-entry.js';

export class Fetchers {
  /** Lazy bases in other directories, by their paths. */
  readonly #outside = new Map<string, Fetching>();

  constructor(
    private readonly place: Place,
    private readonly catalog: Catalog,
  ) {}

  /**
   * Returns when the reader should try again, which may take as long as the registry is away. Fails
   * only if the block can never be filled.
   */
  async fetchBlock({ path: file, uuid, layer, block }: RemoteBlock): Promise<void> {
    if (this.place.settings.readOnly) {
      throw new PcowError(
        'PCOW_READ_ONLY',
        `${file} lacks bytes, and a read-only mount cannot store what it fetches: mount for writing, or run pcow prefetch first`,
      );
    }
    const entry = await this.#entryOf(file, uuid);
    await (entry?.fetching ?? this.#outsideAt(file)).fetch(layer, block);
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#outside.values()].map((one) => one.stop()));
  }

  /** The image may have another name than when its file was opened. null: it is not in here. */
  async #entryOf(file: string, uuid: string): Promise<ImageEntry | null> {
    const own =
      path.dirname(file) === this.place.directory ? imageNameOf(path.basename(file)) : null;
    const usual = own === null ? null : await this.#entryIf(own, uuid);
    if (usual !== null) return usual;
    for (const name of await this.catalog.names()) {
      const entry = await this.#entryIf(name, uuid);
      if (entry !== null) return entry;
    }
    return null;
  }

  /** null: the name belongs to another image, or to none. */
  async #entryIf(name: string, uuid: string): Promise<ImageEntry | null> {
    const found = await this.catalog.findSound(name).catch(() => null);
    const opening = await found?.entry.view().catch(() => null);
    return opening?.uuid === uuid ? (found?.entry ?? null) : null;
  }

  #outsideAt(file: string): Fetching {
    let fetching = this.#outside.get(file);
    if (fetching === undefined) {
      fetching = new Fetching({ name: file }, async () => {
        log(`${file}: opened for writing, to store what is fetched`);
        const image = await Image.open(file, { write: true });
        return { image, release: () => image.close() };
      });
      this.#outside.set(file, fetching);
    }
    return fetching;
  }
}
