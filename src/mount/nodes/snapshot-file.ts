/** `.pcow/NAME/at/SNAPSHOT`: a snapshot as a file. Its content never changes, but its name may. */
import { basename, dirname } from 'node:path';

import type { PcowError, SnapshotInfo } from '../../engine/index.js';
import type { Attributes } from '../fuse/attributes.js';
import type { Found } from '../images/catalog.js';
import type { MountContext } from '../context.js';
import { refusal } from '../failure.js';
import { ImageNode, type OpenFile } from './node.js';
import { OpenFlatFile } from './open-flat-file.js';

/** Not that of flat files: a monitor that does not know snapshots would map the present content. */
const ATTACH_ATTRIBUTE = 'user.pcow.attach-snapshot';

export class SnapshotFile extends ImageNode {
  readonly #snapshot: SnapshotInfo;

  constructor(context: MountContext, path: string, found: Found, snapshot: SnapshotInfo) {
    super(context, path, found);
    this.#snapshot = snapshot;
  }

  attributes(): Promise<Attributes> {
    return this.context.attributes.ofSnapshot(this.found, this.#snapshot);
  }

  override open(writable: boolean): Promise<OpenFile> {
    return writable
      ? Promise.reject(this.#neverChanges('; make a clone to write to it'))
      : OpenFlatFile.open(
          this.path,
          this.found.entry,
          this.#snapshot.name,
          false,
          this.context.native,
        );
  }

  /**
   * For a monitor: the id of the layer, and the socket (native/attach/protocol.h). Without a clean
   * store the kernel's mappings are better: they share the page cache, where a monitor would copy.
   */
  override extendedAttribute(name: string): Promise<string> {
    const { socket } = this.context.place;
    return name === ATTACH_ATTRIBUTE && socket !== '' && this.context.store() !== null
      ? Promise.resolve(`${this.#snapshot.id} ${socket}`)
      : super.extendedAttribute(name);
  }

  override truncate(): Promise<void> {
    return Promise.reject(this.#neverChanges(''));
  }

  override unlink(): Promise<void> {
    const message = `${this.path} can't be removed: write its name to the "delete" control file`;
    return Promise.reject(refusal('EPERM', 'PCOW_PERMISSION', message));
  }

  /** A snapshot stays with its image. */
  override async rename(target: string): Promise<void> {
    const { entry } = this.found;
    await entry.orFailed('mv', async () => {
      if (dirname(target) !== dirname(this.path)) {
        const message = `${this.path} can't become ${target}: a snapshot stays with its image`;
        throw refusal('EPERM', 'PCOW_PERMISSION', message);
      }
      await this.context.commands.renameSnapshot(entry, this.#snapshot.name, basename(target));
    });
  }

  #neverChanges(instead: string): PcowError {
    return refusal(
      'EACCES',
      'PCOW_READ_ONLY',
      `${this.path} is a snapshot: it never changes${instead}`,
    );
  }
}
