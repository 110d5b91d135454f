/** `NAME`: the flat file of an image. Its size is the image's, and truncate does not change it. */
import type { Attributes } from '../fuse/attributes.js';
import { extendedAttributeNames, extendedAttributes } from './extended-attributes.js';
import { refusal } from '../failure.js';
import { ImageNode, type OpenFile } from './node.js';
import { OpenFlatFile } from './open-flat-file.js';

export class FlatFile extends ImageNode {
  attributes(): Promise<Attributes> {
    return this.context.attributes.ofFlatFile(this.found);
  }

  override async open(writable: boolean): Promise<OpenFile> {
    const { native, files } = this.context;
    const file = await OpenFlatFile.open(this.path, this.found.entry, null, writable, native);
    if (native) files.grant(file);
    return file;
  }

  /**
   * open(O_TRUNC) arrives as `truncate` to 0 without a handle, and does nothing, as on a block
   * device.
   */
  override async truncate(size: number, byHandle: boolean): Promise<void> {
    const { entry } = this.found;
    const { image } = await entry.view();
    const present = image.size();
    if (size === present || (size === 0 && !byHandle)) {
      return;
    }
    const error = refusal(
      'EPERM',
      'PCOW_INVALID',
      `${entry.name} keeps its size of ${present} bytes: to make it ${size} bytes, use "pcow resize"`,
    );
    entry.failed('truncate', error);
    throw error;
  }

  override imageFile(): string {
    return this.found.entry.file;
  }

  override async unlink(): Promise<void> {
    const { entry } = this.found;
    await entry.orFailed('rm', () => this.context.catalog.unlink(entry.name));
  }

  override async rename(target: string): Promise<void> {
    const [, name, ...rest] = target.split('/');
    if (name === undefined || rest.length > 0) {
      return super.rename(target);
    }
    const { entry } = this.found;
    await entry.orFailed('mv', () => this.context.catalog.rename(entry.name, name));
  }

  override async extendedAttribute(name: string): Promise<string> {
    const read = extendedAttributes.get(name);
    return read ? read(this.found.entry, this.context.place) : super.extendedAttribute(name);
  }

  override extendedAttributeNames(): string[] {
    return extendedAttributeNames(this.context.place);
  }
}
