import path from 'node:path';
import type { Command } from 'commander';
import type { Image, ImageInfo } from '../../src/engine/index.js';
import { addNotes } from '../output/help.js';
import {
  guestOf,
  isHeldBy,
  type Reception,
  receptionOf,
  stateOf,
} from '../../src/client/image-state.js';
import type { Attached } from '../../src/client/mount-status.js';
import { withImage } from '../../src/images/with-image.js';
import { say, sayJson } from '../output/stdout.js';
import { forEach } from '../output/several-images.js';
import { formatSize } from '../../src/images/sizes.js';
import { describeReception, describeState } from '../output/image-state-text.js';
import { facts } from '../output/table.js';
import { findImage, flatFile, type ImageTarget } from '../find-image.js';

export function addInfo(program: Command): void {
  const command = program
    .command('info')
    .summary('show information about an image')
    .description(
      'Shows the size, the base, the state and other properties of an image. The image may be in use.',
    )
    .argument('<image...>', 'the images')
    .option('--json', 'for programs')
    .action(info);
  addNotes(command, {
    examples: [
      { command: 'pcow info vm1', does: 'of vm1.pcow' },
      {
        command: 'pcow info /mnt/vm1 --json',
        does: 'of a mounted image, as JSON; for several images, a list',
      },
    ],
  });
}

async function info(givens: string[], options: { json?: boolean }): Promise<void> {
  const found = await forEach(givens, async (given) => {
    const target = await findImage(given);
    const { image, lazy } = await withImage(target.file, {}, async (open) => {
      const described = open.info();
      return { image: described, lazy: described.lazy ? await lazyPartOf(open) : null };
    });
    const guest = await guestOf(image.holder, target.mount, target.name);
    const isMounts = guest === null && (await isHeldBy(target.mount, image));
    return { target, image, lazy, guest, isMounts, receiving: await receptionOf(image) };
  });
  if (options.json === true) {
    const described = found.map(forPrograms);
    sayJson(givens.length === 1 ? described[0] : described);
  } else if (found.length > 0) {
    say(found.map((it) => facts(factsOf(it))).join('\n\n'));
  }
}

interface Found {
  target: ImageTarget;
  image: ImageInfo;
  lazy: LazyPart | null;
  /** writes it instead of the mount */
  guest: Attached | null;
  /** the mount is its writer */
  isMounts: boolean;
  receiving: Reception | null;
}

/** What is said about a lazy image only. */
interface LazyPart {
  remoteBytes: number;
  /** Where they are; null: the image has just become an ordinary one. */
  reference: string | null;
  /** The bytes that it may have fetched at the same time; null: there is no limit. */
  limit: number | null;
}

async function lazyPartOf(image: Image): Promise<LazyPart> {
  const { sourceOf } = await import('../../src/registry/lazy-layers.js');
  const { reference = null, limit = null } = (await sourceOf(image))?.origin ?? {};
  return { remoteBytes: await image.remoteBytes(), reference, limit };
}

function forPrograms({ target, image, lazy, guest, receiving }: Found): object {
  // The permissions and counts of this opening say nothing about the image, and `holder` names the
  // living process.
  const {
    writable: _writable,
    lastError: _lastError,
    opener: _opener,
    persistent: _persistent,
    kernelWrites: _writes,
    kernelSyncs: _syncs,
    ...rest
  } = image;
  return {
    name: target.name,
    ...rest,
    remoteBytes: lazy?.remoteBytes ?? 0,
    reference: lazy?.reference ?? null,
    limit: lazy?.limit ?? null,
    state: stateOf(image),
    ...(guest?.stalled && { stalled: true }),
    receiving,
    mount: mountOf(target),
  };
}

function mountOf(target: ImageTarget): { mountpoint: string; flatFile: string } | null {
  return (
    target.mount && {
      mountpoint: target.mount.mountpoint,
      flatFile: flatFile(target, target.mount),
    }
  );
}

function factsOf({ target, image, lazy, guest, isMounts, receiving }: Found): [string, string][] {
  const lines: [string, string][] = [
    ['image', image.path],
    ['size', `${formatSize(image.size)} (${image.size} bytes)`],
    ['disk use', formatSize(image.diskUse)],
    ['blocks', `${formatSize(image.blockSize)}, sub-blocks ${formatSize(image.subBlockSize)}`],
    ['snapshots', String(image.snapshots)],
  ];
  if (lazy !== null && lazy.reference !== null) {
    const limit = lazy.limit === null ? '' : `; at most ${formatSize(lazy.limit)} are kept here`;
    lines.push(['lazy', `${formatSize(lazy.remoteBytes)} are still in ${lazy.reference}${limit}`]);
  }
  if (image.base !== null) {
    const { path: file, snapshot, layer } = image.base;
    lines.push(['base', snapshot === null ? `${file}, layer ${layer}` : `${file}@${snapshot}`]);
    lines.push(['chain', image.chain.map(linkText).join(' → ')]);
  }
  const state = describeState(image, guest, isMounts ? target.mount : null);
  lines.push(['state', receiving === null ? state : `${state}\n${describeReception(receiving)}`]);
  if (target.mount !== null) {
    lines.push(['mounted', flatFile(target, target.mount)]);
  }
  lines.push(['uuid', image.uuid], ['format', `version ${image.formatVersion}`]);
  return lines;
}

function linkText(link: ImageInfo['chain'][number], index: number): string {
  const file = path.basename(link.path);
  return index === 0 ? file : `${file}@${link.snapshot ?? '(unnamed)'}`;
}
