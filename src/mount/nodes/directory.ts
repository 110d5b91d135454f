/** The directories of a mount: the mountpoint, the control directory, that of an image in it, and its snapshots'. */
import { PcowError } from '../../engine/index.js';
import type { Attributes } from '../fuse/attributes.js';
import type { Catalog } from '../images/catalog.js';
import { imageControls, mountControls, STATUS } from '../control/control-tree.js';
import { isShown } from '../images/image-entry.js';
import { RESERVED_NAMES } from '../../images/image-names.js';
import { ImageNode, Node } from './node.js';

export const CONTROL_DIRECTORY = '.pcow';

/** The directory of a snapshot's flat files, beside an image's control files. */
export const SNAPSHOT_DIRECTORY = 'at';

/** The mountpoint: the flat files. */
export class RootDirectory extends Node {
  attributes(): Promise<Attributes> {
    return this.context.attributes.ofRoot(this.path);
  }

  /** The control directory is there for whoever names it, and listed only on request: what copies a mount would read each snapshot. */
  override async names(): Promise<string[]> {
    const { place, catalog } = this.context;
    return [...(place.settings.showControl ? [CONTROL_DIRECTORY] : []), ...(await shownNames(catalog))];
  }
}

/** `.pcow` */
export class ControlDirectory extends Node {
  attributes(): Promise<Attributes> {
    return this.context.attributes.ofControlDirectory(this.path);
  }

  override async names(): Promise<string[]> {
    const images = (await this.context.catalog.names()).filter((name) => !RESERVED_NAMES.includes(name));
    return [...mountControls.keys(), ...images];
  }
}

/** `.pcow/NAME` */
export class ImageDirectory extends ImageNode {
  attributes(): Promise<Attributes> {
    return Promise.resolve(this.context.attributes.ofImageDirectory(this.found, this.path, 0));
  }

  /** Only the status file is there for an image that can't be opened. */
  override async names(): Promise<string[]> {
    const { state } = await this.found.entry.state();
    return state === 'ok' ? [...imageControls.keys(), SNAPSHOT_DIRECTORY] : [STATUS];
  }
}

/** `.pcow/NAME/at` */
export class SnapshotDirectory extends ImageNode {
  /** Who may write the image may rename its snapshots: the kernel looks at the directory first. */
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
        return !(error instanceof PcowError && error.code === 'PCOW_NOT_FOUND'); // it has just gone away
      }
    }),
  );
  return names.filter((_, at) => shown[at]);
}
