import { stat } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { howToName, imageFilesIn, PcowError, type ImageInfo, type SnapshotInfo } from '../../src/engine/index.js';
import { IMAGE_SUFFIX } from '../../src/images/image-names.js';
import { naturalOrder } from '../../src/images/natural-order.js';
import { type PcowMount, pcowMounts } from '../../src/images/mount-table.js';
import { briefTroubleOf } from '../asking.js';
import { warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../images.js';
import { formatTime, say, sayJson } from '../output/stdout.js';
import { formatSize } from '../size.js';
import { describeReception, guestOf, type Reception, receptionOf, stateOf, type State } from '../output/image-state.js';
import { table } from '../output/table.js';
import { findDirectory, findImage } from '../target.js';
import { treeOf } from '../output/snapshot-tree.js';

export function addList(program: Command): void {
  const command = program
    .command('list')
    .summary('list the images of a directory, or the snapshots of an image')
    .description('Lists the images of a directory (or of its mount), or the snapshots of an image as a tree.')
    .argument(
      '[where]',
      'a directory, a mountpoint, or an image; default: the mounts of this machine, and the images in this ' +
        'directory',
    )
    .option('--json', 'for programs')
    .action(list);
  addNotes(command, {
    examples: [
      { command: 'pcow list', does: 'all mounts' },
      { command: 'pcow list /srv/images', does: 'the images there' },
      { command: 'pcow list /mnt', does: 'the images of a mount' },
      { command: 'pcow list vm1', does: 'the snapshots of vm1.pcow' },
    ],
  });
}

async function list(where: string | undefined, options: { json?: boolean }): Promise<void> {
  if (where === undefined) {
    await listMounts(options.json === true);
    return;
  }
  const isDirectory = await stat(where).then(
    (status) => status.isDirectory(),
    () => false,
  );
  await (isDirectory ? listDirectory(where, options.json === true) : listImage(where, options.json === true));
}

/** One image of a directory; `error` says why the rest is not known. */
interface Entry {
  name: string;
  file: string;
  size: number | null;
  diskUse: number | null;
  snapshots: number | null;
  base: { path: string; snapshot: string | null } | null;
  state: State | 'unreadable';
  holder: ImageInfo['holder'];
  /** A guest has it, and stands still; otherwise it is not there. */
  stalled?: true;
  receiving: Reception | null;
  error: { code: string; message: string } | null;
}

/** All mounts; and the images of this directory, where it has some. */
async function listMounts(json: boolean): Promise<void> {
  const mounts = await pcowMounts();
  const here = await imagesOf('.');
  if (json) {
    sayJson({ directory: here.directory, mountpoint: here.mount?.mountpoint ?? null, images: here.images, mounts });
    return;
  }
  if (mounts.length === 0) say('nothing is mounted');
  else {
    const rows = mounts.map(({ directory, mountpoint, readOnly }) => [
      directory,
      mountpoint,
      readOnly ? 'read-only' : '',
    ]);
    say(table([{ title: 'images' }, { title: 'mounted on' }, { title: '' }], rows));
  }
  if (here.images.length === 0) return;
  say('');
  await sayImages(here);
}

interface Listing {
  directory: string;
  mount: PcowMount | null;
  images: Entry[];
}

async function imagesOf(where: string): Promise<Listing> {
  const { directory, mount } = await findDirectory(where);
  const { names: files, nameless } = await imageFilesIn(directory);
  const names = files.map((file) => path.basename(file, IMAGE_SUFFIX)).sort(naturalOrder);
  const images: Entry[] = nameless.map((file) => {
    const error = new PcowError('PCOW_INVALID', howToName(directory, file));
    return unreadable(path.basename(file.shown, IMAGE_SUFFIX), path.join(directory, file.shown), error);
  });
  // One after another: an image directory may hold thousands, and each one open takes several descriptors.
  for (const name of names) {
    images.push(await entryOf(path.join(directory, name + IMAGE_SUFFIX), mount));
  }
  return { directory, mount, images };
}

async function listDirectory(where: string, json: boolean): Promise<void> {
  const listing = await imagesOf(where);
  const { directory, mount, images } = listing;
  if (json) sayJson({ directory, mountpoint: mount?.mountpoint ?? null, images });
  else await sayImages(listing);
}

async function sayImages({ directory, mount, images }: Listing): Promise<void> {
  say(mount === null ? `${directory}, not mounted` : `${directory}, mounted on ${mount.mountpoint}`);
  const trouble = mount && (await briefTroubleOf(mount));
  if (trouble !== null) warn('pcow', `${trouble.message}: ${trouble.cure}`);
  if (images.length === 0) {
    say('no images');
    return;
  }
  const size = (bytes: number | null) => (bytes === null ? '' : formatSize(bytes));
  say(
    table(
      [
        { title: 'image' },
        { title: 'size', align: 'right' },
        { title: 'disk use', align: 'right' },
        { title: 'snapshots', align: 'right' },
        { title: 'base' },
        { title: 'state' },
      ],
      images.map((image) => [
        image.name,
        size(image.size),
        size(image.diskUse),
        String(image.snapshots ?? ''),
        baseText(image.base),
        stateText(image),
      ]),
    ),
  );
}

function stateText({ error, holder, receiving, stalled, state }: Entry): string {
  if (error !== null) return error.message;
  if (receiving !== null) return describeReception(receiving);
  if (holder === null) return state;
  return stalled === true
    ? `stalled (process ${holder.pid}): its disk is full or fails`
    : `open (process ${holder.pid})`;
}

async function entryOf(file: string, mount: PcowMount | null): Promise<Entry> {
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
    if (!(error instanceof PcowError)) {
      throw error;
    }
    return unreadable(name, file, error);
  }
}

function unreadable(name: string, file: string, { code, message }: PcowError): Entry {
  const unknown = { size: null, diskUse: null, snapshots: null, base: null, holder: null, receiving: null };
  return { name, file, ...unknown, state: 'unreadable', error: { code, message } };
}

function baseText(base: Entry['base']): string {
  if (base === null) {
    return '';
  }
  return base.snapshot === null ? base.path : `${base.path}@${base.snapshot}`;
}

async function listImage(where: string, json: boolean): Promise<void> {
  const target = await findImage(where);
  const { info, snapshots } = await withImage(target.file, {}, (image) => ({
    info: image.info(),
    snapshots: image.snapshots(),
  }));
  const receiving = await receptionOf(info);
  if (json) {
    sayJson({ name: target.name, file: target.file, size: info.size, snapshots, receiving });
    return;
  }
  say(`${target.file}, ${formatSize(info.size)}${info.base === null ? '' : `, on ${baseText(info.base)}`}`);
  if (receiving !== null) say(describeReception(receiving));
  if (snapshots.length === 0) {
    say('no snapshots');
    return;
  }
  const rows = treeOf(snapshots).map(({ branch, node }) =>
    node === null
      ? [`${branch}(active)`, '', '', formatSize(info.size)]
      : [branch + label(node), formatTime(node.created), formatSize(node.data), formatSize(node.size)],
  );
  say(
    table(
      [{ title: 'snapshot' }, { title: 'taken' }, { title: 'data', align: 'right' }, { title: 'size', align: 'right' }],
      rows,
    ),
  );
}

function label(snapshot: SnapshotInfo): string {
  return snapshot.automatic ? `${snapshot.name} (automatic)` : snapshot.name;
}
