/** Checks an image directory: makes an image there, uses it and removes it. */
import { constants } from 'node:fs';
import { access, copyFile, mkdtemp, rm, stat, statfs } from 'node:fs/promises';
import path from 'node:path';
import {
  givingItAName,
  Image,
  imageFilesIn,
  isInPersistentMemory,
  PcowError,
} from '../../src/engine/index.js';
import { IMAGE_SUFFIX } from '../../src/images/image-names.js';
import type { MountTableEntry, PcowMount } from '../../src/images/mount-table.js';
import { briefTroubleOf, briefTroubleOnTheWay } from '../../src/images/mount-answers.js';
import { monitorsProblem } from '../../src/client/mount-status.js';
import { explained } from '../output/errors.js';
import { fileSystemOf, overwritingProblem } from '../../src/images/file-system.js';
import { withImage } from '../../src/images/with-image.js';
import { quote, word } from '../../src/engine/quote.js';
import { formatSize, GIB, MIB } from '../../src/images/sizes.js';
import { findDirectory } from '../find-image.js';
import { type Finding, ok, problem, warning } from './finding.js';

/** Filesystems on which a mapping on one machine does not see the writes of another one. */
const SHARED = /^(nfs|cifs|smb|9p|afs|ceph|glusterfs|fuse)/;

/** If the disk is fuller than this, guests will soon be paused. */
const LITTLE_SPACE = 0.05;

export async function directoryFindings(given: string): Promise<Finding[]> {
  const trouble = await briefTroubleOnTheWay(given);
  if (trouble !== null) return [problem('mount', trouble.message, trouble.cure)];
  const { directory, mount } = await findDirectory(given);
  const place = await fileSystemOf(directory);
  return [
    mount === null ? ok('mount', `${directory} is not mounted`) : await mountFinding(mount),
    fileSystem(place),
    ...(await looked('space', `the free space of ${directory} can't be read`, () =>
      space(directory),
    )),
    ...(await looked('image', `an image can't be made in ${directory}`, () => tried(directory))),
    ...(await looked('images', `the images of ${directory} can't be checked`, () =>
      images(directory),
    )),
  ];
}

/** A check that fails is itself a finding, with its fix; the other checks continue. */
async function looked(
  check: string,
  what: string,
  look: () => Promise<Finding | Finding[]>,
): Promise<Finding[]> {
  try {
    return [await look()].flat();
  } catch (error) {
    const { code, message, hint } = explained(error);
    if (code === null) throw error;
    return [problem(check, `${what}: ${message}`, hint ?? 'use ext4 or XFS')];
  }
}

async function mountFinding(mount: PcowMount): Promise<Finding> {
  const { directory, mountpoint } = mount;
  const trouble = await briefTroubleOf(mount);
  if (trouble !== null) return problem('mount', trouble.message, trouble.cure);
  const unattached = await monitorsProblem(mount);
  return unattached === null
    ? ok('mount', `${directory} is mounted on ${mountpoint}`)
    : problem(
        'mount',
        `${mountpoint}: ${unattached}`,
        `pcow umount ${word(mountpoint)}, and mount it again with that`,
      );
}

function fileSystem(place: MountTableEntry | undefined): Finding {
  const type = place?.type ?? 'unknown';
  if (SHARED.test(type)) {
    return warning(
      'filesystem',
      `the images are on ${type}: no other machine may use them meanwhile`,
      'use a local file system',
    );
  }
  if (type === 'tmpfs' || type === 'ramfs') {
    return warning(
      'filesystem',
      `the images are on ${type}: they are gone after the next boot`,
      'use a file system on a disk',
    );
  }
  const overwriting = overwritingProblem(type);
  if (overwriting !== null)
    return warning('filesystem', overwriting, 'use ext4 or XFS, or keep space free');
  return ok('filesystem', `the images are on ${type}`);
}

/** `persistent`: whether the writer of a new image there stores into persistent memory. */
function dax(persistent: boolean): Finding {
  return ok(
    'dax',
    persistent
      ? 'DAX with MAP_SYNC: under the monitor, a store that the guest has flushed is durable, also on an nvdimm'
      : 'no DAX with MAP_SYNC: a flush of the guest needs fsync to be durable, so use virtio-pmem',
  );
}

async function space(directory: string): Promise<Finding> {
  const { bavail, blocks, bsize } = await statfs(directory);
  const text = `${formatSize(bavail * bsize)} of ${formatSize(blocks * bsize)} are free`;
  return bavail < blocks * LITTLE_SPACE
    ? warning(
        'space',
        `${text}: guests are paused when the disk is full`,
        'free space, or move images elsewhere',
      )
    : ok('space', text);
}

/**
 * Whether the filesystem supports what an image needs: sparse files and holes; and reflinks, which
 * help copies.
 */
async function tried(directory: string): Promise<Finding[]> {
  try {
    await access(directory, constants.W_OK);
  } catch {
    return [
      problem('writable', `this user may not write to ${directory}`, 'run as the user who owns it'),
    ];
  }
  const scratch = await mkdtemp(path.join(directory, '.pcow-doctor-'));
  try {
    const file = path.join(scratch, `image${IMAGE_SUFFIX}`);
    await Image.create(file, { size: 64 * GIB });
    const { empty, full, punched, persistent } = await withImage(
      file,
      { write: true },
      async (image) => {
        const use = async () => {
          await image.sync();
          return (await stat(file)).blocks * 512;
        };
        const before = await use();
        await image.write(Buffer.alloc(MIB, 1), 32 * GIB);
        const after = await use();
        await image.discard(32 * GIB, MIB);
        // freed blocks are given back by the sync after the one that makes their release durable
        await use();
        return {
          empty: before,
          full: after,
          punched: await use(),
          persistent: image.info().persistent,
        };
      },
    );
    const reflinks = await copyFile(file, `${file}-copy`, constants.COPYFILE_FICLONE_FORCE).then(
      () => true,
      () => false,
    );
    return [
      dax(persistent),
      ...(await elsewhere(directory, persistent)),
      empty < MIB
        ? ok('sparse', 'files are sparse: an image takes space as it is written')
        : warning(
            'sparse',
            `an empty image takes ${formatSize(empty)}: the filesystem gives files space in large units`,
            'on XFS, remove the extent size hint before images are made: "xfs_io -c \'extsize 0\' DIR"',
          ),
      punched < full
        ? ok('holes', 'discarded blocks are given back to the disk')
        : warning('holes', 'what a guest discards does not go back to the disk', 'use ext4 or XFS'),
      ok(
        'reflink',
        reflinks
          ? 'cp --reflink copies an image at once'
          : 'no reflinks: copies of image files take time and space',
      ),
    ];
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/**
 * The images whose files differ in this from a new one: persistent memory is a property of each
 * file.
 */
async function elsewhere(directory: string, persistent: boolean): Promise<Finding[]> {
  const { names } = await imageFilesIn(directory);
  const files = names.filter((file) => !file.startsWith('.'));
  const others: string[] = [];
  for (const file of files) {
    // An image that cannot be opened is a finding of images().
    const found = await isInPersistentMemory(path.join(directory, file)).catch(() => persistent);
    if (found !== persistent) others.push(file);
  }
  const [first] = others;
  if (first === undefined) return [];
  const which = others.length === 1 ? quote(first) : `${others.length} of ${files.length} images`;
  return [
    persistent
      ? warning(
          'dax',
          `${which} ${others.length === 1 ? 'is' : 'are'} not in persistent memory, but new images are`,
          'copy the image, and rename the copy',
        )
      : warning(
          'dax',
          `${which} ${others.length === 1 ? 'is' : 'are'} in persistent memory, but new images are not`,
          'chattr +x the directory',
        ),
  ];
}

/** Images that cannot be opened. */
async function images(directory: string): Promise<Finding[]> {
  const { names, nameless } = await imageFilesIn(directory);
  const files = names.filter((file) => !file.startsWith('.'));
  const unnamed = nameless.map((file) => {
    const cure = givingItAName(directory, file);
    return problem('image', `${quote(file.shown)} is not a valid name: it is not UTF-8`, cure);
  });
  const findings: Finding[] = [];
  for (const file of files) {
    try {
      await withImage(path.join(directory, file), {}, (image) => image.info());
    } catch (error) {
      if (!(error instanceof PcowError)) throw error;
      findings.push(
        problem(
          'image',
          `${quote(file)} can't be opened: ${error.message}`,
          `pcow info ${word(path.join(directory, file))}`,
        ),
      );
    }
  }
  return [
    ...unnamed,
    ...findings,
    ok('images', `${files.length - findings.length} of ${files.length} images can be opened`),
  ];
}
