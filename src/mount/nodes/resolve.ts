/** Finds the node that a path in the mount names. */
import type { Found } from '../images/catalog.js';
import type { MountContext } from '../context.js';
import { imageControls, mountControls, STATUS } from '../control/control-tree.js';
import { noSuchFile } from '../failure.js';
import { isShown } from '../images/image-entry.js';
import { ImageControlFile, MountControlFile } from './control-file.js';
import {
  CONTROL_DIRECTORY,
  ControlDirectory,
  ImageDirectory,
  RootDirectory,
  SNAPSHOT_DIRECTORY,
  SnapshotDirectory,
} from './directory.js';
import { FlatFile } from './flat-file.js';
import type { Node } from './node.js';
import { SnapshotFile } from './snapshot-file.js';

/** Fails with ENOENT if there is none. */
export async function resolve(context: MountContext, path: string): Promise<Node> {
  const [first = '', ...below] = path.split('/').slice(1);
  if (first === '') {
    return new RootDirectory(context, path);
  }
  if (first === CONTROL_DIRECTORY) {
    return inControlDirectory(context, path, below);
  }
  if (below.length > 0 || first.startsWith('.')) {
    throw noSuchFile(path);
  }
  const found = await context.catalog.find(first);
  await sound(found, first);
  return new FlatFile(context, path, found);
}

async function inControlDirectory(
  context: MountContext,
  path: string,
  names: string[],
): Promise<Node> {
  const [first, ...below] = names;
  if (first === undefined) {
    return new ControlDirectory(context, path);
  }
  const control = mountControls.get(first);
  if (!control) {
    return ofImage(context, path, await context.catalog.find(first), below);
  }
  if (below.length > 0) {
    throw noSuchFile(path);
  }
  return new MountControlFile(context, path, first, control);
}

async function ofImage(
  context: MountContext,
  path: string,
  found: Found,
  names: string[],
): Promise<Node> {
  const [first, second, ...below] = names;
  if (first === undefined) {
    return new ImageDirectory(context, path, found);
  }
  // An image that cannot be opened has only the status file.
  if (first !== STATUS || second !== undefined) {
    await sound(found, path);
  }
  if (first === SNAPSHOT_DIRECTORY) {
    if (second === undefined) {
      return new SnapshotDirectory(context, path, found);
    }
    if (below.length > 0) {
      throw noSuchFile(path);
    }
    return new SnapshotFile(context, path, found, await found.entry.snapshot(second));
  }
  const control = imageControls.get(first);
  if (!control || second !== undefined) {
    throw noSuchFile(path);
  }
  return new ImageControlFile(context, path, first, control, found);
}

async function sound({ entry }: Found, path: string): Promise<void> {
  const { state, error } = await entry.state();
  if (state !== 'ok') {
    throw isShown(state) ? error : noSuchFile(path);
  }
}
