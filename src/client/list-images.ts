/** The images of a directory, with what is known about each without disturbing any process. */
import path from 'node:path';
import {
  type Holder,
  howToName,
  imageFilesIn,
  PcowError,
  type PcowErrorCode,
} from '../engine/index.js';
import { findDirectory } from '../images/find-image.js';
import { IMAGE_SUFFIX } from '../images/image-names.js';
import type { AskOptions } from '../images/mount-answers.js';
import type { PcowMount } from '../images/mount-table.js';
import { naturalOrder } from '../images/natural-order.js';
import { withImage } from '../images/with-image.js';
import {
  guestOf,
  type ImageFileState,
  type Reception,
  receptionOf,
  stateOf,
} from './image-state.js';

/** One image of a directory. Values that are not known are null, and `error` says why. */
export interface ListedImage {
  /** Its name in a mount. */
  name: string;
  /** The path of the image file. */
  file: string;
  /** Bytes: the size that a guest sees. */
  size: number | null;
  /** Bytes that the image file takes on its disk. */
  diskUse: number | null;
  /** Bytes of a lazy image that have not been fetched yet; null: it is not lazy. */
  remote: number | null;
  /** The number of its snapshots. */
  snapshots: number | null;
  /** Its base, as recorded in the image; null: none. */
  base: {
    /** The path of the base's image file. */
    path: string;
    /** The snapshot of the base; null: a layer without a name. */
    snapshot: string | null;
  } | null;
  /** `unreadable`: it cannot be opened. */
  state: ImageFileState | 'unreadable';
  /** The process that has it open for writing. */
  holder: Holder | null;
  /** Set if a guest has the image and is paused, because its disk is full or fails. */
  stalled?: true;
  /** The state of an unfinished receive. */
  receiving: Reception | null;
  /** Why it cannot be opened. */
  error: {
    /** The code of a PcowError. */
    code: PcowErrorCode;
    /** A sentence. */
    message: string;
  } | null;
}

/** A directory and its images. */
export interface ImageList {
  /** A real path. */
  directory: string;
  /** The mount of the directory. */
  mount: PcowMount | null;
  /** Sorted, with numbers in names compared as numbers: vm2 before vm10. */
  images: ListedImage[];
}

/**
 * Lists the images of a directory, or of a mount by its mountpoint. Errors: PCOW_NOT_FOUND,
 * PCOW_MOUNT.
 */
export async function listImages(where: string, options: AskOptions = {}): Promise<ImageList> {
  const { directory, mount } = await findDirectory(where, options);
  const { names: files, nameless } = await imageFilesIn(directory);
  const names = files.map((file) => path.basename(file, IMAGE_SUFFIX)).sort(naturalOrder);
  const images: ListedImage[] = nameless.map((file) => {
    const error = new PcowError('PCOW_INVALID', howToName(directory, file));
    return unreadable(
      path.basename(file.shown, IMAGE_SUFFIX),
      path.join(directory, file.shown),
      error,
    );
  });
  // One after another, because a directory may have thousands of images, and each open image needs
  // several descriptors.
  for (const name of names) {
    images.push(await listed(path.join(directory, name + IMAGE_SUFFIX), mount));
  }
  return { directory, mount, images };
}

async function listed(file: string, mount: PcowMount | null): Promise<ListedImage> {
  const name = path.basename(file, IMAGE_SUFFIX);
  try {
    const { info, remote } = await withImage(file, {}, async (image) => {
      const described = image.info();
      return { info: described, remote: described.lazy ? await image.remoteBytes() : null };
    });
    return {
      name,
      file,
      size: info.size,
      diskUse: info.diskUse,
      remote,
      snapshots: info.snapshots,
      base: info.base && { path: info.base.path, snapshot: info.base.snapshot },
      state: stateOf(info),
      holder: info.holder,
      ...((await guestOf(info.holder, mount, name))?.stalled && { stalled: true }),
      receiving: await receptionOf(info),
      error: null,
    };
  } catch (error) {
    if (!(error instanceof PcowError)) throw error;
    return unreadable(name, file, error);
  }
}

function unreadable(name: string, file: string, { code, message }: PcowError): ListedImage {
  const unknown = {
    size: null,
    diskUse: null,
    remote: null,
    snapshots: null,
    base: null,
    holder: null,
    receiving: null,
  };
  return { name, file, ...unknown, state: 'unreadable', error: { code, message } };
}
