/** What the nodes and control files of a mount use. */
import type { AttributeSource } from './fuse/attributes.js';
import type { Catalog } from './images/catalog.js';
import { Fetchers } from './images/fetchers.js';
import type { Commands } from './control/commands.js';
import { type LastError, lastErrorOf } from './control/last-error.js';
import { log } from './log.js';
import { OpenFiles } from './fuse/open-files.js';
import type { Place } from './place.js';
import type { StoreFigures } from '../engine/attach-server.js';

export class MountContext {
  readonly place: Place;
  readonly catalog: Catalog;
  readonly commands: Commands;
  readonly attributes: AttributeSource;
  readonly files = new OpenFiles();
  readonly fetchers: Fetchers;
  /**
   * Whether the bytes of flat files are served natively. Set when the session has begun, before the
   * first open.
   */
  native = false;
  /** The clean store; null if the mount has none. */
  store: () => StoreFigures | null = () => null;
  #lastError: LastError | null = null;

  constructor(place: Place, catalog: Catalog, commands: Commands, attributes: AttributeSource) {
    this.place = place;
    this.catalog = catalog;
    this.fetchers = new Fetchers(place, catalog);
    this.commands = commands;
    this.attributes = attributes;
  }

  /** The last error that belongs to no single image. */
  get lastError(): LastError | null {
    return this.#lastError;
  }

  /** Keeps the error for `status`, and logs it. */
  failed(command: string, error: unknown): void {
    this.#lastError = lastErrorOf(command, error);
    log(`${command} failed: ${this.#lastError.message}`);
  }
}
