/**
 * The directories of a mount: the mountpoint, the control directory, an image's directory in it,
 * and the directory of its snapshots.
 */
import { PcowError } from '../../engine/index.js';
import type { Attributes } from '../fuse/attributes.js';
import type { Catalog } from '../images/catalog.js';
import { imageControls, mountControls, STATUS } from '../control/control-tree.js';
import { isShown } from '../images/image-entry.js';
import { RESERVED_NAMES } from '../../images/image-names.js';
import { ImageNode, Node } from './node.js';

export const CONTROL_DIRECTORY = '.pcow';

/** The directory with the files of an image's snapshots, beside its control files. */
export const SNAPSHOT_DIRECTORY = 'at';

/** The path of that directory in the mount. */
export function snapshotDirectory(image: string): string {
  return `/${CONTROL_DIRECTORY}/${image}/${SNAPSHOT_DIRECTORY}`;
}

/** The mountpoint: it contains the flat files. */
export class RootDirectory extends Node {
  attributes(): Promise<Attributes> {
    return this.context.attributes.ofRoot();
  }

  /**
   * The control directory can always be opened by its name, but is listed only if requested: a
   * program that copies the mount would read each snapshot.
   */
  override async names(): Promise<string[]> {
    const { place, catalog } = this.context;
    return [
      ...(place.settings.showControl ? [CONTROL_DIRECTORY] : []),
      ...(await shownNames(catalog)),
    ];
  }
}

/** `.pcow` */
export class ControlDirectory extends Node {
  attributes(): Promise<Attributes> {
    return this.context.attributes.ofControlDirectory(this.path);
  }

  override async names(): Promise<string[]> {
    const images = (await this.context.catalog.names()).filter(
      (name) => !RESERVED_NAMES.includes(name),
    );
    return [...mountControls.keys(), ...images];
  }
}

/** `.pcow/NAME` */
export class ImageDirectory extends ImageNode {
  attributes(): Promise<Attributes> {
    return Promise.resolve(this.context.attributes.ofImageDirectory(this.found, this.path, 0));
  }

  /** An image that cannot be opened has only the status file. */
  override async names(): Promise<string[]> {
    const { state } = await this.found.entry.state();
    return state === 'ok' ? [...imageControls.keys(), SNAPSHOT_DIRECTORY] : [STATUS];
  }
}

/** `.pcow/NAME/at` */
export class SnapshotDirectory extends ImageNode {
  /**
   * A user who may write the image may rename its snapshots: the kernel checks the directory first.
   */
  attributes(): Promise<Attributes> {
    return Promise.resolve(this.context.attributes.ofImageDirectory(this.found, this.path, 0o222));
  }

  override async names(): Promise<string[]> {
    const { image } = await this.found.entry.view();
    return image.snapshotNames();
  }
}

async function shownNames(catalog: Catalog): Promise<string[]> {
  const names = await catalog.names();
  const shown = await Promise.all(
    names.map(async (name) => {
      try {
        return isShown((await (await catalog.find(name)).entry.state()).state);
      } catch (error) {
        // it has just disappeared
        return !(error instanceof PcowError && error.code === 'PCOW_NOT_FOUND');
      }
    }),
  );
  return names.filter((_, at) => shown[at]);
}
