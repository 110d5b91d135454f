/**
 * The open files of a mount by their handle numbers. Bytes of flat files are served natively where that is possible (see
 * engine/native-operations.ts); a control file's text is made when it is opened and stays the same for that opening.
 */
import { constants } from 'node:os';

import { closeHandle, FIRST_NATIVE_HANDLE, openHandle } from '../engine/native-operations.js';
import { PcowError } from '../engine/index.js';
import type { FlatFileUse } from './image-entry.js';

export interface OpenText {
  kind: 'text';
  path: string;
  text: Buffer;
}

export interface OpenFlatFile {
  kind: 'flat';
  use: FlatFileUse;
}

export type OpenFile = OpenText | OpenFlatFile;

export class OpenFiles {
  readonly #files = new Map<number, OpenFile>();
  #next = 1;

  /** `native`: the bytes are to be served without JavaScript. */
  addFlatFile(use: FlatFileUse, native: boolean): number {
    const { opening, snapshot, writable } = use;
    let handle: number;
    if (native) {
      const lent = snapshot === null && use.entry.attachment.state !== 'detached' && !opening.writable;
      handle = openHandle(opening.image, { writable, lent, ...(snapshot !== null && { snapshot }) });
      use.handle = handle;
    } else {
      handle = this.#freeNumber();
    }
    this.#files.set(handle, { kind: 'flat', use });
    return handle;
  }

  addText(path: string, text: string): number {
    const handle = this.#freeNumber();
    this.#files.set(handle, { kind: 'text', path, text: Buffer.from(text) });
    return handle;
  }

  get(handle: number): OpenFile {
    const file = this.#files.get(handle);
    if (!file) {
      throw new PcowError('PCOW_CLOSED', `no file is open under the handle ${handle}`, {
        errno: constants.errno.EBADF,
      });
    }
    return file;
  }

  close(handle: number): void {
    const file = this.get(handle);
    this.#files.delete(handle);
    if (handle >= FIRST_NATIVE_HANDLE) {
      closeHandle(handle);
    }
    if (file.kind === 'flat') {
      file.use.entry.close(file.use);
    }
  }

  /** Every open flat file, and file of a snapshot. */
  get flatFiles(): FlatFileUse[] {
    return [...this.#files.values()].flatMap((file) => (file.kind === 'flat' ? [file.use] : []));
  }

  /** The text that the newest opening of a control file reads: what its size must be as long as it is open. */
  textOf(path: string): Buffer | null {
    let newest: Buffer | null = null;
    for (const file of this.#files.values()) {
      if (file.kind === 'text' && file.path === path) {
        newest = file.text;
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
