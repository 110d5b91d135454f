/**
 * A control file, of an image or of the mount. What it says is made when it is opened, and stays the same for that opening, but for the
 * reason why the last command that was written through it has failed. One write is one command.
 */
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

  /** Returns when the command is done; keeps its failure for `status`. */
  abstract command(bytes: Uint8Array): Promise<void>;

  protected abstract sized(size: number): Promise<Attributes>;

  /** The size is that of what the newest opening says, as long as there is one. */
  async attributes(): Promise<Attributes> {
    return this.sized(this.context.files.textSizeOf(this.path) ?? Buffer.byteLength(await this.text()));
  }

  /** No text is made for its size. */
  override listed(): Promise<Attributes> {
    return this.sized(0);
  }

  override async open(writable: boolean): Promise<OpenFile> {
    if (writable && !this.writable) {
      throw refusal('EACCES', 'PCOW_READ_ONLY', `${this.path} only tells something: nothing can be written to it`);
    }
    return new OpenControlFile(this, await this.text());
  }

  /** As a shell's `>` asks for. */
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

  constructor(context: MountContext, path: string, name: string, control: Control<Found>, found: Found) {
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

  /** The image is the one that the file was opened for, also under another name; not one that has taken its place. */
  async command(bytes: Uint8Array): Promise<void> {
    const { entry } = this.#found;
    await entry.orFailed(this.name, async () => {
      const found = await this.context.catalog.again(entry);
      await this.#control.write?.(this.context, found, commandText(bytes));
      entry.count(this.name);
    });
  }

  protected sized(size: number): Promise<Attributes> {
    return Promise.resolve(this.context.attributes.ofImageControl(this.#found, this.path, this.writable, size));
  }
}

/** Each opening tells its own failure, so that two who fail at once do not take each other's for theirs. */
class OpenControlFile implements OpenFile {
  readonly handle = null;
  readonly use = null;
  readonly #file: ControlFile;
  readonly #text: Buffer;
  /** Why the last command has failed; null: it has not. */
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

  /** Wherever it is written to: `>>` begins at the end of what the file says. */
  async write(buffer: Buffer): Promise<number> {
    try {
      await this.#file.command(buffer);
    } catch (error) {
      this.#failure = Buffer.from(`${JSON.stringify(errorFields(lastErrorOf(this.#file.name, error)))}\n`);
      throw error;
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
    // There is nothing to let go.
  }
}
