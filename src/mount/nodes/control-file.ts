/**
 * A control file, of an image or of the mount. Its text is made when it is opened, and stays the
 * same for that opening. Only if the last command written through it fails, the text becomes the
 * reason. One write is one command.
 */
import { flatFilesChanged } from '../../engine/native-operations.js';
import type { Attributes } from '../fuse/attributes.js';
import type { Found } from '../images/catalog.js';
import type { MountContext } from '../context.js';
import { commandText } from '../control/control-text.js';
import type { Control } from '../control/control-tree.js';
import { refusal } from '../failure.js';
import { errorFields, lastErrorOf } from '../control/last-error.js';
import { Node, type OpenFile } from './node.js';

export abstract class ControlFile extends Node {
  readonly name: string;

  constructor(context: MountContext, path: string, name: string) {
    super(context, path);
    this.name = name;
  }

  /** Whether commands can be written to it. */
  protected abstract get writable(): boolean;

  abstract text(): Promise<string>;

  /** Returns when the command is done. Keeps its error for `status`. */
  abstract command(bytes: Uint8Array): Promise<void>;

  protected abstract sized(size: number): Promise<Attributes>;

  /** The size is that of the newest opening's text, as long as there is an opening. */
  async attributes(): Promise<Attributes> {
    return this.sized(
      this.context.files.textSizeOf(this.path) ?? Buffer.byteLength(await this.text()),
    );
  }

  /** No text is made, so the size is 0. */
  override listed(): Promise<Attributes> {
    return this.sized(0);
  }

  override async open(writable: boolean): Promise<OpenFile> {
    if (writable && !this.writable) {
      throw refusal(
        'EACCES',
        'PCOW_READ_ONLY',
        `${this.path} is a read-only control file: it takes no commands`,
      );
    }
    return new OpenControlFile(this, await this.text());
  }

  /** A shell's `>` truncates the file. */
  override truncate(): Promise<void> {
    return Promise.resolve();
  }
}

/** `.pcow/NAME` */
export class MountControlFile extends ControlFile {
  readonly #control: Control<null>;

  constructor(context: MountContext, path: string, name: string, control: Control<null>) {
    super(context, path, name);
    this.#control = control;
  }

  protected get writable(): boolean {
    return this.#control.write !== undefined;
  }

  text(): Promise<string> {
    return this.#control.read(this.context, null);
  }

  async command(bytes: Uint8Array): Promise<void> {
    try {
      await this.#control.write?.(this.context, null, commandText(bytes));
    } catch (error) {
      this.context.failed(this.name, error);
      throw error;
    }
  }

  protected sized(size: number): Promise<Attributes> {
    return this.context.attributes.ofMountControl(this.path, this.writable, size);
  }
}

/** `.pcow/IMAGE/NAME` */
export class ImageControlFile extends ControlFile {
  readonly #control: Control<Found>;
  readonly #found: Found;

  constructor(
    context: MountContext,
    path: string,
    name: string,
    control: Control<Found>,
    found: Found,
  ) {
    super(context, path, name);
    this.#control = control;
    this.#found = found;
  }

  protected get writable(): boolean {
    return this.#control.write !== undefined;
  }

  text(): Promise<string> {
    return this.#control.read(this.context, this.#found);
  }

  /**
   * The file acts on the image for which it was opened, even after a rename, and never on an image
   * that has replaced it.
   */
  async command(bytes: Uint8Array): Promise<void> {
    const { entry } = this.#found;
    await entry.orFailed(this.name, async () => {
      const found = await this.context.catalog.again(entry);
      await this.#control.write?.(this.context, found, commandText(bytes));
      entry.count(this.name);
    });
  }

  protected sized(size: number): Promise<Attributes> {
    return Promise.resolve(
      this.context.attributes.ofImageControl(this.#found, this.path, this.writable, size),
    );
  }
}

/**
 * Each opening reports its own failure, so that two processes that fail at the same time do not
 * read each other's.
 */
class OpenControlFile implements OpenFile {
  readonly handle = null;
  readonly use = null;
  readonly #file: ControlFile;
  readonly #text: Buffer;
  /** Why the last command failed; null: it did not. */
  #failure: Buffer | null = null;

  constructor(file: ControlFile, text: string) {
    this.#file = file;
    this.#text = Buffer.from(text);
  }

  get path(): string {
    return this.#file.path;
  }

  get #says(): Buffer {
    return this.#failure ?? this.#text;
  }

  get textSize(): number {
    return this.#says.length;
  }

  read(buffer: Buffer, offset: number): Promise<number> {
    return Promise.resolve(this.#says.copy(buffer, 0, Math.min(offset, this.#says.length)));
  }

  /** `offset` is ignored: `>>` writes at the end of the text. */
  async write(buffer: Buffer): Promise<number> {
    try {
      await this.#file.command(buffer);
    } catch (error) {
      this.#failure = Buffer.from(
        `${JSON.stringify(errorFields(lastErrorOf(this.#file.name, error)))}\n`,
      );
      throw error;
    } finally {
      // A command that fails may have changed an image, too.
      flatFilesChanged();
    }
    this.#failure = null;
    return buffer.length;
  }

  sync(): Promise<void> {
    return Promise.resolve();
  }

  answer(): Promise<'yes'> {
    return Promise.resolve('yes');
  }

  close(): void {
    // There is nothing to release.
  }
}
