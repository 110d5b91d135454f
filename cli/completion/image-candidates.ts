/**
 * Images, snapshots and mountpoints as candidates. Errors are ignored: a message would disturb the
 * unfinished line.
 */
import { type Dirent } from 'node:fs';
import { readdir, realpath } from 'node:fs/promises';
import path from 'node:path';
import { IMAGE_SUFFIX } from '../../src/images/image-names.js';
import { pcowMounts } from '../../src/images/mount-table.js';
import { briefTroubleOnTheWay } from '../../src/images/mount-answers.js';
import { withImage } from '../../src/images/with-image.js';
import { findDirectory, findImage } from '../find-image.js';
import type { Candidate } from './candidates.js';

/**
 * Images (without “.pcow”), or flat files of a mount, in the directory that was typed; and its
 * subdirectories.
 */
export async function imageCandidates(current: string): Promise<Candidate[]> {
  const typed = current.slice(0, current.lastIndexOf('/') + 1);
  const begun = current.slice(typed.length);
  const { entries, mounted } = await contentsOf(typed === '' ? '.' : typed);
  return entries.flatMap((entry): Candidate[] => {
    if (!entry.name.startsWith(begun) || (entry.name.startsWith('.') && !begun.startsWith('.')))
      return [];
    if (entry.isDirectory()) return [{ value: `${typed}${entry.name}/`, description: '' }];
    if (mounted) return [{ value: typed + entry.name, description: 'mounted image' }];
    if (!entry.name.endsWith(IMAGE_SUFFIX)) return [];
    return [{ value: typed + path.basename(entry.name, IMAGE_SUFFIX), description: 'image' }];
  });
}

/** IMAGE@SNAPSHOT if the image is complete, otherwise images followed by “@”. */
export async function snapshotCandidates(current: string): Promise<Candidate[]> {
  const at = current.lastIndexOf('@');
  const names = at > 0 ? await snapshotsOf(current.slice(0, at)) : null;
  if (names === null) {
    const images = await imageCandidates(current);
    return images.map((it) => (it.value.endsWith('/') ? it : { ...it, value: `${it.value}@` }));
  }
  return names
    .map((name) => ({ value: current.slice(0, at + 1) + name, description: 'snapshot' }))
    .filter(({ value }) => value.startsWith(current));
}

export async function mountpointCandidates(current: string): Promise<Candidate[]> {
  const mounts = await pcowMounts();
  return mounts
    .map(({ mountpoint, directory }) => ({ value: mountpoint, description: directory }))
    .filter(({ value }) => value.startsWith(current));
}

async function contentsOf(directory: string): Promise<{ entries: Dirent[]; mounted: boolean }> {
  try {
    if ((await briefTroubleOnTheWay(directory)) !== null) return { entries: [], mounted: false };
    const entries = await readdir(directory, { withFileTypes: true });
    const { mount } = await findDirectory(directory);
    return { entries, mounted: mount?.mountpoint === (await realpath(directory)) };
  } catch {
    return { entries: [], mounted: false };
  }
}

async function snapshotsOf(image: string): Promise<string[] | null> {
  try {
    if ((await briefTroubleOnTheWay(image)) !== null) return null;
    const { file } = await findImage(image);
    return await withImage(file, {}, (open) => open.snapshotNames());
  } catch {
    return null;
  }
}
