/**
 * An open flat file, or open file of a snapshot. Its bytes are served natively if that is possible
 * (engine/native-operations.ts); otherwise read(), write() and sync() serve them.
 */
import {
  closeHandle,
  openHandle,
  type Question,
  type QuestionAnswer,
} from '../../engine/native-operations.js';
import type { FlatFileUse, ImageEntry } from '../images/image-entry.js';
import type { OpenFile } from './node.js';

export class OpenFlatFile implements OpenFile {
  readonly path: string;
  readonly use: FlatFileUse;
  readonly textSize = null;

  /** `native`: the bytes are served without JavaScript. */
  constructor(path: string, use: FlatFileUse, native: boolean) {
    this.path = path;
    this.use = use;
    const { entry, opening, snapshot, writable } = use;
    if (native && use.handle === null) {
      const lent = snapshot === null && entry.attachment.state !== 'detached' && !opening.writable;
      use.handle = openHandle(opening.image, {
        writable,
        lent,
        ...(snapshot !== null && { snapshot }),
      });
    }
  }

  /** `snapshot`: null means the flat file itself. */
  static async open(
    path: string,
    entry: ImageEntry,
    snapshot: string | null,
    writable: boolean,
    native: boolean,
  ): Promise<OpenFlatFile> {
    try {
      const use = await entry.open(snapshot, writable);
      try {
        return new OpenFlatFile(path, use, native);
      } catch (error) {
        entry.close(use);
        throw error;
      }
    } catch (error) {
      entry.failed('open', error);
      throw error;
    }
  }

  get handle(): number | null {
    return this.use.handle;
  }

  async read(buffer: Buffer, offset: number): Promise<number> {
    const { opening, snapshot } = this.use;
    const bytes = await (snapshot === null
      ? opening.image.read(buffer, offset)
      : opening.image.read(buffer, offset, snapshot));
    opening.served.reads += 1;
    opening.served.readBytes += bytes;
    return bytes;
  }

  async write(buffer: Buffer, offset: number): Promise<number> {
    await this.use.entry.attachment.regain(this.use);
    const { opening } = this.use;
    const bytes = await opening.image.write(buffer, offset);
    opening.served.writes += 1;
    opening.served.writtenBytes += bytes;
    return bytes;
  }

  async sync(): Promise<void> {
    await this.use.entry.attachment.sync();
  }

  async answer({ kind, pid }: Question): Promise<QuestionAnswer> {
    const { entry } = this.use;
    if (kind === 'write') {
      await entry.attachment.regain(this.use);
      return 'yes';
    }
    try {
      return await entry.attachment.mayOpen(this.use, pid);
    } catch (error) {
      entry.failed('open', error);
      throw error;
    }
  }

  close(): void {
    if (this.use.handle !== null) {
      closeHandle(this.use.handle);
    }
    this.use.entry.close(this.use);
  }
}
