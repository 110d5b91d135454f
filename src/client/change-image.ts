/**
 * Changes an image wherever it is: an image at rest is opened for writing; if the image is in a
 * mount, the mount is asked, also while a guest runs. Every function takes the result of
 * findImage() or a similar function (src/images/find-image.ts).
 *
 * Sizes are bytes. Failures reject with a PcowError: PCOW_LOCKED if another process writes the
 * image, PCOW_BUSY or PCOW_IN_USE if this or another image must not change now, PCOW_MOUNT if the
 * mount does not answer, and the errors of the operations of Image.
 */
import path from 'node:path';
import {
  type BaseOptions,
  checkSnapshotName,
  Image,
  PcowError,
  refuseWhereStoodOn,
  removeImage as removeImageFile,
  removeRemains,
  renameImage as renameImageFile,
  snapshotTogether,
  survey,
  takingAway,
} from '../engine/index.js';
import { quote, word } from '../engine/quote.js';
import { automaticName } from '../images/automatic-name.js';
import { findImage, type ImageTarget, type Target } from '../images/find-image.js';
import type { AskOptions } from '../images/mount-answers.js';
import { withImage } from '../images/with-image.js';
import {
  askForCut,
  askForRename,
  askForWork,
  askImage,
  joinWords,
  type WorkOptions,
} from './control.js';
import { checkBase, onFrozenLayer } from './make-image.js';

/**
 * Takes one snapshot of several images, which is one cut across them. All of them are in one mount,
 * or none is in any. Durable when it resolves.
 */
export async function snapshotImages(
  name: string,
  images: ImageTarget[],
  options: AskOptions = {},
): Promise<void> {
  const [first] = images;
  if (first === undefined)
    throw new PcowError('PCOW_INVALID', 'a snapshot of several images needs at least one image');
  const { mount } = first;
  const apart = images.find((image) => image.mount?.mountpoint !== mount?.mountpoint);
  if (apart !== undefined) {
    throw new PcowError(
      'PCOW_USAGE',
      `${first.given} and ${apart.given} are not in the same mount, so their snapshots can't be one cut`,
      { next: 'take them one after another' },
    );
  }
  if (mount === null) {
    await snapshotAtRest(name, images);
  } else if (images.length === 1) {
    await askImage(mount, first.name, 'snapshot', name, options);
  } else {
    const names = images.map((image) => image.name);
    await askForCut(mount, name, names, options);
  }
}

async function snapshotAtRest(name: string, targets: ImageTarget[]): Promise<void> {
  const images: Image[] = [];
  try {
    for (const { file } of targets) images.push(await Image.open(file, { write: true }));
    await snapshotTogether(name, images);
  } finally {
    await Promise.all(images.map((image) => image.close()));
  }
}

/** Goes back to a snapshot: what was written since is lost. No guest may use the image. */
export async function rollbackImage(
  image: ImageTarget,
  snapshot: string,
  options: AskOptions = {},
): Promise<void> {
  const { mount, file, name } = image;
  if (mount !== null) await askImage(mount, name, 'rollback', snapshot, options);
  else await withImage(file, { write: true }, (open) => open.rollback(snapshot));
}

/** Renames a snapshot. Images that stand on it are not affected. */
export async function renameSnapshot(
  image: ImageTarget,
  from: string,
  to: string,
  options: AskOptions = {},
): Promise<void> {
  const { mount, file, name } = image;
  checkSnapshotName(to);
  if (mount !== null) await askImage(mount, name, 'rename', joinWords(from, to), options);
  else await withImage(file, { write: true }, (open) => open.renameSnapshot(from, to));
}

/** Deletes a snapshot, unless an image of the directory stands on it (PCOW_IN_USE). */
export async function deleteSnapshot(
  image: ImageTarget,
  snapshot: string,
  options: WorkOptions = {},
): Promise<void> {
  const { mount, file, name } = image;
  if (mount !== null) {
    await askForWork(mount, name, 'delete', snapshot, options);
    return;
  }
  await withImage(file, { write: true }, async (open) => {
    const layer = open.layerOf(snapshot);
    await takingAway({ file, what: `${name}@${snapshot} can't be deleted`, layer }, () =>
      open.delete(snapshot, longOf(options)),
    );
  });
}

/**
 * Gives an image `size` bytes. A smaller size needs `shrink`, and no process may have the image
 * open then.
 */
export async function resizeImage(
  image: ImageTarget,
  size: number,
  { shrink = false, ...options }: AskOptions & { shrink?: boolean | undefined } = {},
): Promise<void> {
  const { mount, file, name } = image;
  if (mount !== null)
    await askImage(mount, name, 'resize', shrink ? `${size} shrink` : String(size), options);
  else await withImage(file, { write: true }, (open) => open.resize(size, { shrink }));
}

/**
 * Puts an image on another base, or (null) on none, and copies what the two hold differently: the
 * content of the image stays the same.
 */
export async function rebaseImage(
  image: ImageTarget,
  base: Target | null,
  options: WorkOptions = {},
): Promise<void> {
  const { mount, file, name } = image;
  if (base !== null) await checkBase(base, image);
  if (mount === null) {
    const change = (standing: BaseOptions | null) =>
      withImage(file, { write: true }, (open) => open.rebase(standing, longOf(options)));
    await (base === null ? change(null) : onFrozenLayer(base, change, options));
  } else if (base === null) {
    await askForWork(mount, name, 'flatten', 'now', options);
  } else if (base.image.mount?.mountpoint === mount.mountpoint) {
    await askForWork(mount, name, 'rebase', joinWords(base.image.name, base.snapshot), options);
  } else {
    throw new PcowError(
      'PCOW_BASE_OUTSIDE',
      `${quote(image.given)} is mounted, and ${quote(base.image.given)} is not in the same mount`,
      {
        next: `move it into ${mount.directory}, or end the mount first: pcow umount ${word(mount.mountpoint)}`,
      },
    );
  }
}

/**
 * Only records another base, or (null) none, without comparing contents: for a base that was moved
 * or copied. The old base need not exist any more. The image must not be mounted.
 */
export async function rebaseUnsafely(
  image: ImageTarget,
  base: Target | null,
  options: AskOptions = {},
): Promise<void> {
  if (image.mount !== null) {
    throw new PcowError(
      'PCOW_BUSY',
      `the base of ${image.name} can't be changed with --unsafe while it is mounted on ${image.mount.mountpoint}`,
      { next: `pcow umount ${word(image.mount.mountpoint)}` },
    );
  }
  if (base === null) {
    await unlessStoodOn(image, () => Image.setBaseBlindly(image.file, null));
    return;
  }
  await checkBase(base, image);
  const setBase = (standing: BaseOptions) => Image.setBaseBlindly(image.file, standing);
  const present = await Image.baseOf(image.file);
  const { uuid, layer } = await withImage(base.image.file, {}, (open) => ({
    uuid: open.info().uuid,
    layer: base.snapshot === null ? present?.layer : open.layerOf(base.snapshot),
  }));
  if (present?.uuid === uuid && present.layer === layer) {
    // The same base at another path: the layer stays, whatever was written to the base since.
    await setBase({ path: base.image.file, layer: present.layer });
  } else {
    await unlessStoodOn(image, () => onFrozenLayer(base, setBase, options));
  }
}

/** Snapshots of the image may read differently afterwards, so no image may stand on them. */
async function unlessStoodOn(image: ImageTarget, change: () => Promise<void>): Promise<void> {
  await takingAway(
    { file: image.file, what: `the base of ${image.name} can't be changed with --unsafe` },
    change,
  );
}

/**
 * Copies everything that the image and its snapshots read from the base. Afterwards the image
 * stands on no base.
 */
export async function flattenImage(image: ImageTarget, options: WorkOptions = {}): Promise<void> {
  await rebaseImage(image, null, options);
}

/** The result of a commit. */
export interface Commit {
  /** The image file of the base. */
  base: ImageTarget;
  /** The new snapshot of the base. */
  snapshot: string;
  /**
   * Whether the base's own content changed as well: it does if the base has written nothing since
   * the image was made on it.
   */
  followed: boolean;
}

/**
 * Moves what an image has written into its base, as a new snapshot there. Afterwards the image is
 * empty and stands on that snapshot. `name` is the snapshot's; default: an automatic one. Neither
 * of the two may be in use, and the image must have no snapshots.
 */
export async function commitImage(
  image: ImageTarget,
  { name, ...options }: WorkOptions & { name?: string | undefined } = {},
): Promise<Commit> {
  const { base: info } = await withImage(image.file, {}, (open) => open.info());
  if (info === null) {
    throw new PcowError('PCOW_INVALID', `${image.name} has no base to commit to`, {
      next: 'pcow info shows what an image stands on',
    });
  }
  const base = await findImage(info.resolved, options);
  const snapshot = name ?? automaticName();
  if (image.mount !== null) {
    await askForWork(image.mount, image.name, 'commit', snapshot, options);
  } else if (base.mount !== null) {
    throw new PcowError(
      'PCOW_BUSY',
      `the base ${base.file} is mounted on ${base.mount.mountpoint}, and ${image.name} is not`,
      { next: `end that mount first: pcow umount ${word(base.mount.mountpoint)}` },
    );
  } else {
    await withImage(image.file, { write: true }, (open) =>
      withImage(base.file, { write: true }, (into) =>
        open.commitInto(into, snapshot, { ...longOf(options), automatic: name === undefined }),
      ),
    );
  }
  const followed = await withImage(
    base.file,
    {},
    (open) => open.info().chain[1]?.snapshot === snapshot,
  );
  return { base, snapshot, followed };
}

/** Gives back blocks of the image and of its snapshots that hold only zeros. */
export async function compactImage(image: ImageTarget, options: WorkOptions = {}): Promise<void> {
  const { mount, file, name } = image;
  if (mount !== null) await askForWork(mount, name, 'compact', 'now', options);
  else await withImage(file, { write: true }, (open) => open.compact(longOf(options)));
}

/** Makes checksums for the snapshots' data that has none. */
export async function addChecksums(image: ImageTarget, options: WorkOptions = {}): Promise<void> {
  const { mount, file, name } = image;
  if (mount !== null) await askForWork(mount, name, 'checksums', 'add', options);
  else await withImage(file, { write: true }, (open) => open.addChecksums(longOf(options)));
}

/** Removes all checksums. */
export async function removeChecksums(
  image: ImageTarget,
  options: WorkOptions = {},
): Promise<void> {
  const { mount, file, name } = image;
  if (mount !== null) await askForWork(mount, name, 'checksums', 'remove', options);
  else await withImage(file, { write: true }, (open) => open.removeChecksums());
}

/**
 * Renames an image within its directory; newImage() finds the new path. The images of the directory
 * that stand on it are updated.
 */
export async function renameImage(
  image: ImageTarget,
  to: ImageTarget,
  options: AskOptions = {},
): Promise<void> {
  if (path.dirname(to.file) !== path.dirname(image.file)) {
    throw new PcowError(
      'PCOW_INVALID',
      `${quote(to.given)} lies in another directory than ${image.file}, and a rename keeps an image where it is`,
      {
        next: 'move the file with mv, and tell images that stand on it with “pcow rebase --unsafe”',
      },
    );
  }
  if (to.file === image.file)
    throw new PcowError('PCOW_EXISTS', `${image.name} already has that name`);
  if (image.mount !== null) {
    await askForRename(image.mount, image.name, to.name, options);
    return;
  }
  // Open for writing, so that no other process writes it or deletes it.
  await withImage(image.file, { write: true }, () =>
    renameImageFile(image.file, to.file, {
      open: async ({ image: file, layer }) => ({
        image: await Image.open(file, { write: true }),
        layer,
      }),
      close: ({ image: standing }) => standing.close(),
    }),
  );
}

/**
 * Sorts the images so that each can be deleted: images that stand on others come first. Fails with
 * PCOW_IN_USE if there is no such order.
 */
export async function orderOfRemoval(images: ImageTarget[]): Promise<ImageTarget[]> {
  const ordered: ImageTarget[] = [];
  for (let left = images; left.length > 0;) {
    const free: ImageTarget[] = [];
    for (const image of left) {
      // If it is unknown whether an image stands on it, assume that it does.
      const { standing, unclear } = await survey(path.dirname(image.file), image.file);
      const gone = (file: string) => ordered.some((it) => it.file === file);
      if ([...standing, ...unclear].every((one) => gone(one.image))) free.push(image);
    }
    const [blocked] = left;
    if (free.length === 0 && blocked !== undefined) {
      await refuseWhereStoodOn({ file: blocked.file, what: `${blocked.file} can't be deleted` });
    }
    ordered.push(...free);
    left = left.filter((image) => !free.includes(image));
  }
  return ordered;
}

/**
 * Deletes an image with its snapshots, unless it is in use or an image of its directory stands on
 * it.
 */
export async function removeImage(
  { file, name, mount }: ImageTarget,
  options: AskOptions = {},
): Promise<void> {
  if (mount !== null) {
    await askImage(mount, name, 'remove', name, options);
    return;
  }
  await removeImageFile(file);
  await removeRemains(path.dirname(file));
}

/** The options that the engine knows: it refuses all others. */
function longOf({ signal, onProgress }: WorkOptions) {
  return { signal, onProgress };
}
