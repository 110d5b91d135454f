import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { describeHolder, receptionOf } from '../../src/client/image-state.js';
import { type ImageList, type ListedImage, listImages } from '../../src/client/list-images.js';
import type { SnapshotInfo } from '../../src/engine/index.js';
import { briefTroubleOf } from '../../src/images/mount-answers.js';
import { pcowMounts } from '../../src/images/mount-table.js';
import { formatSize } from '../../src/images/sizes.js';
import { withImage } from '../../src/images/with-image.js';
import { findImage, whileWaiting } from '../find-image.js';
import { warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { describeReception } from '../output/image-state-text.js';
import { treeOf } from '../output/snapshot-tree.js';
import { formatTime, say, sayJson } from '../output/stdout.js';
import { table } from '../output/table.js';

export function addList(program: Command): void {
  const command = program
    .command('list')
    .summary('list the images of a directory, or the snapshots of an image')
    .description(
      'Lists the images of a directory (or of its mount), or the snapshots of an image as a tree.',
    )
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
  await (isDirectory
    ? listDirectory(where, options.json === true)
    : listImage(where, options.json === true));
}

/** All mounts, and the images of this directory if it has any. */
async function listMounts(json: boolean): Promise<void> {
  const mounts = await pcowMounts();
  const here = await listImages('.', whileWaiting);
  if (json) {
    sayJson({
      directory: here.directory,
      mountpoint: here.mount?.mountpoint ?? null,
      images: here.images,
      mounts,
    });
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

async function listDirectory(where: string, json: boolean): Promise<void> {
  const listing = await listImages(where, whileWaiting);
  const { directory, mount, images } = listing;
  if (json) sayJson({ directory, mountpoint: mount?.mountpoint ?? null, images });
  else await sayImages(listing);
}

async function sayImages({ directory, mount, images }: ImageList): Promise<void> {
  say(
    mount === null ? `${directory}, not mounted` : `${directory}, mounted on ${mount.mountpoint}`,
  );
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

function stateText(image: ListedImage): string {
  const state = presentState(image);
  return image.remote === null ? state : `${state}, ${formatSize(image.remote)} to fetch`;
}

function presentState({ error, holder, receiving, stalled, state }: ListedImage): string {
  if (error !== null) return error.message;
  if (receiving !== null) return describeReception(receiving);
  if (holder === null) return state;
  return stalled === true
    ? `stalled (process ${holder.pid}): its disk is full or failing`
    : `open (${describeHolder(holder)})`;
}

function baseText(base: ListedImage['base']): string {
  if (base === null) {
    return '';
  }
  return base.snapshot === null ? base.path : `${base.path}@${base.snapshot}`;
}

async function listImage(where: string, json: boolean): Promise<void> {
  const target = await findImage(where);
  const { info, remote, snapshots } = await withImage(target.file, {}, async (image) => {
    const described = image.info();
    return {
      info: described,
      remote: described.lazy ? await image.remoteBytes() : null,
      snapshots: image.snapshots(),
    };
  });
  const receiving = await receptionOf(info);
  if (json) {
    sayJson({ name: target.name, file: target.file, size: info.size, snapshots, receiving });
    return;
  }
  say(
    `${target.file}, ${formatSize(info.size)}${info.base === null ? '' : `, on ${baseText(info.base)}`}`,
  );
  if (remote !== null) say(`${formatSize(remote)} are fetched when they are used`);
  if (receiving !== null) say(describeReception(receiving));
  if (snapshots.length === 0) {
    say('no snapshots');
    return;
  }
  const rows = treeOf(snapshots).map(({ branch, node }) =>
    node === null
      ? [`${branch}(active)`, '', '', formatSize(info.size)]
      : [
          branch + label(node),
          formatTime(node.created),
          formatSize(node.data),
          formatSize(node.size),
        ],
  );
  say(
    table(
      [
        { title: 'snapshot' },
        { title: 'taken' },
        { title: 'data', align: 'right' },
        { title: 'size', align: 'right' },
      ],
      rows,
    ),
  );
}

function label(snapshot: SnapshotInfo): string {
  return snapshot.automatic ? `${snapshot.name} (automatic)` : snapshot.name;
}
