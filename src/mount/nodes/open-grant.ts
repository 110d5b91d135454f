/**
 * The grant of a flat file: the native operations open and close it without the list of open files
 * (OpenFiles), until anything reads that list. Then the files that are open are added to the list,
 * and JavaScript decides about the next open again.
 */
import { grantOpens, takeBackOpens } from '../../engine/native-operations.js';
import type { ImageEntry } from '../images/image-entry.js';
import type { Opening } from '../images/opening.js';

interface GrantOwner {
  /** The file with this handle is open, and must be closed like any other. */
  opened(handle: number, writable: boolean): void;
  /** The grant has ended. */
  over(grant: OpenGrant): void;
}

export class OpenGrant {
  readonly #entry: ImageEntry;
  readonly #opening: Opening;
  readonly #name: string;
  readonly #owner: GrantOwner;
  #over = false;

  constructor(entry: ImageEntry, opening: Opening, owner: GrantOwner) {
    this.#entry = entry;
    this.#opening = opening;
    this.#name = entry.name;
    this.#owner = owner;
    entry.grant = opening.grant = this;
    grantOpens(this.#name, opening.image);
  }

  takeBack(): void {
    if (this.#over) return;
    this.#over = true;
    this.#entry.grant = this.#opening.grant = null;
    for (const { fh, writable } of takeBackOpens(this.#name)) this.#owner.opened(fh, writable);
    this.#owner.over(this);
  }
}
