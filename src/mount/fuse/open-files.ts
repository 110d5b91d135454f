/** The open files of a mount, by their handle numbers. */
import { constants } from 'node:os';

import { FIRST_NATIVE_HANDLE } from '../../engine/native-operations.js';
import { PcowError } from '../../engine/index.js';
import type { FlatFileUse } from '../images/image-entry.js';
import type { OpenFile } from '../nodes/node.js';
import { OpenFlatFile } from '../nodes/open-flat-file.js';
import { OpenGrant } from '../nodes/open-grant.js';

export class OpenFiles {
  readonly #files = new Map<number, OpenFile>();
  /** Files that were opened through these may not be in the map yet. */
  readonly #grants = new Set<OpenGrant>();
  #next = 1;

  /** Returns the handle number. */
  add(file: OpenFile): number {
    const handle = file.handle ?? this.#freeNumber();
    this.#files.set(handle, file);
    return handle;
  }

  /** Lets the native operations open this flat file, which has just been opened, from now on. */
  grant({ path, use }: OpenFlatFile): void {
    const { entry, opening } = use;
    if (!entry.mayGrant(opening)) return;
    const grant = new OpenGrant(entry, opening, {
      opened: (handle, writable) => {
        this.add(
          new OpenFlatFile(
            path,
            entry.use({ entry, opening, snapshot: null, writable, handle }),
            true,
          ),
        );
      },
      over: (it) => {
        this.#grants.delete(it);
      },
    });
    this.#grants.add(grant);
  }

  /** Afterwards the map contains all open files. */
  #takeBackGrants(): void {
    for (const grant of this.#grants) grant.takeBack();
  }

  get(handle: number): OpenFile {
    if (!this.#files.has(handle)) this.#takeBackGrants();
    const file = this.#files.get(handle);
    if (!file) {
      throw new PcowError('PCOW_CLOSED', `no file is open with the handle ${handle}`, {
        errno: constants.errno.EBADF,
      });
    }
    return file;
  }

  close(handle: number): void {
    const file = this.get(handle);
    this.#files.delete(handle);
    file.close();
  }

  /** All open flat files and files of snapshots. */
  get flatFiles(): FlatFileUse[] {
    this.#takeBackGrants();
    return [...this.#files.values()].map(({ use }) => use).filter((use) => use !== null);
  }

  /**
   * The number of bytes in the newest opening of a control file: the file's size as long as it is
   * open. null: it is not open.
   */
  textSizeOf(path: string): number | null {
    let newest: number | null = null;
    for (const file of this.#files.values()) {
      if (file.path === path) {
        newest = file.textSize;
      }
    }
    return newest;
  }

  #freeNumber(): number {
    do {
      this.#next = this.#next >= FIRST_NATIVE_HANDLE - 1 ? 1 : this.#next + 1;
    } while (this.#files.has(this.#next));
    return this.#next;
  }
}
