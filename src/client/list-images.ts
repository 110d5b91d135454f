/** The images of a directory, with what can be told of each without stopping anybody. */
import path from 'node:path';
import { type Holder, howToName, imageFilesIn, PcowError, type PcowErrorCode } from '../engine/index.js';
import { findDirectory } from '../images/find-image.js';
import { IMAGE_SUFFIX } from '../images/image-names.js';
import type { AskOptions } from '../images/mount-answers.js';
import type { PcowMount } from '../images/mount-table.js';
import { naturalOrder } from '../images/natural-order.js';
import { withImage } from '../images/with-image.js';
import { guestOf, type ImageFileState, type Reception, receptionOf, stateOf } from './image-state.js';

/** One image of a directory. What is null is not known: `error` says why. */
export interface ListedImage {
  /** What a mount calls it. */
  name: string;
  /** The path of the image file. */
  file: string;
  /** Bytes of what a guest sees. */
  size: number | null;
  /** Bytes that the image file takes on its disk. */
  diskUse: number | null;
  /** How many. */
  snapshots: number | null;
  /** What it stands on, as it is written in the image; null: nothing. */
  base: {
    /** Of the image file of the base. */
    path: string;
    /** null: a layer without a name. */
    snapshot: string | null;
  } | null;
  /** `unreadable`: it can't be opened. */
  state: ImageFileState | 'unreadable';
  /** The process that has it open for writing. */
  holder: Holder | null;
  /** A guest has it, and stands still, because its disk is full or fails; otherwise it is not there. */
  stalled?: true;
  /** What it has got of a stream that has not ended. */
  receiving: Reception | null;
  /** Why it can't be opened. */
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
  /** In the order in which people count: vm2 before vm10. */
  images: ListedImage[];
}

/** Lists the images of a directory; of a mount by its mountpoint. Errors: PCOW_NOT_FOUND, PCOW_MOUNT. */
export async function listImages(where: string, options: AskOptions = {}): Promise<ImageList> {
  const { directory, mount } = await findDirectory(where, options);
  const { names: files, nameless } = await imageFilesIn(directory);
  const names = files.map((file) => path.basename(file, IMAGE_SUFFIX)).sort(naturalOrder);
  const images: ListedImage[] = nameless.map((file) => {
    const error = new PcowError('PCOW_INVALID', howToName(directory, file));
    return unreadable(path.basename(file.shown, IMAGE_SUFFIX), path.join(directory, file.shown), error);
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
    const info = await withImage(file, {}, (image) => image.info());
    return {
      name,
      file,
      size: info.size,
      diskUse: info.diskUse,
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
  const unknown = { size: null, diskUse: null, snapshots: null, base: null, holder: null, receiving: null };
  return { name, file, ...unknown, state: 'unreadable', error: { code, message } };
}
