/** What a path in the mount stands for. */
import type { Catalog, Found } from './catalog.js';
import { type ControlFile, imageControls, mountControls, STATUS } from './control-tree.js';
import { noSuchFile } from './failure.js';
import { isShown } from './image-entry.js';
import { PcowError, type SnapshotInfo } from '../engine/index.js';
import { RESERVED_NAMES } from './image-names.js';

export const CONTROL_DIRECTORY = '.pcow';

/** The directory of a snapshot's flat files, beside an image's control files. */
export const SNAPSHOT_DIRECTORY = 'at';

export type Node =
  | { kind: 'root' }
  | { kind: 'control' }
  | { kind: 'mount control'; file: ControlFile<null> }
  | { kind: 'image'; found: Found }
  | { kind: 'image control'; found: Found; name: string; file: ControlFile<Found> }
  | { kind: 'snapshots'; found: Found }
  | { kind: 'snapshot'; found: Found; snapshot: SnapshotInfo }
  | { kind: 'flat'; found: Found };

/** Fails with ENOENT where there is nothing. */
export async function resolve(catalog: Catalog, path: string): Promise<Node> {
  const [first, second, third, fourth, ...rest] = path.split('/').slice(1);
  if (first === undefined || first === '') {
    return { kind: 'root' };
  }
  if (first !== CONTROL_DIRECTORY) {
    if (second !== undefined || first.startsWith('.')) {
      throw noSuchFile(path);
    }
    return { kind: 'flat', found: await soundOrNothing(catalog, first) };
  }
  if (second === undefined) {
    return { kind: 'control' };
  }
  const mountControl = mountControls.get(second);
  if (mountControl) {
    if (third !== undefined) {
      throw noSuchFile(path);
    }
    return { kind: 'mount control', file: mountControl };
  }
  const found = await catalog.find(second);
  if (third === undefined) {
    return { kind: 'image', found };
  }
  if (third === STATUS && fourth === undefined) {
    return imageControl(found, third, path);
  }
  // Only the status file is there for an image that can't be opened.
  await sound(found, path);
  if (third !== SNAPSHOT_DIRECTORY) {
    if (fourth !== undefined) {
      throw noSuchFile(path);
    }
    return imageControl(found, third, path);
  }
  if (fourth === undefined) {
    return { kind: 'snapshots', found };
  }
  if (rest.length > 0) {
    throw noSuchFile(path);
  }
  return { kind: 'snapshot', found, snapshot: await found.entry.snapshot(fourth) };
}

function imageControl(found: Found, name: string, path: string): Node {
  const file = imageControls.get(name);
  if (!file) {
    throw noSuchFile(path);
  }
  return { kind: 'image control', found, name, file };
}

async function soundOrNothing(catalog: Catalog, name: string): Promise<Found> {
  const found = await catalog.find(name);
  await sound(found, name);
  return found;
}

async function sound({ entry }: Found, path: string): Promise<void> {
  const { state, error } = await entry.state();
  if (state !== 'ok') {
    throw isShown(state) ? error : noSuchFile(path);
  }
}

/**
 * The names in a directory. Fails with ENOTDIR's kin, ENOENT, for anything else. The control directory is there for whoever names it, and
 * listed where `showControl` says so: what copies a mount would read each snapshot.
 */
export async function namesIn(catalog: Catalog, node: Node, path: string, showControl: boolean): Promise<string[]> {
  switch (node.kind) {
    case 'root':
      return [...(showControl ? [CONTROL_DIRECTORY] : []), ...(await shownNames(catalog))];
    case 'control': {
      const images = (await catalog.names()).filter((name) => !RESERVED_NAMES.includes(name));
      return [...mountControls.keys(), ...images];
    }
    case 'image': {
      const { state } = await node.found.entry.state();
      return state === 'ok' ? [...imageControls.keys(), SNAPSHOT_DIRECTORY] : [STATUS];
    }
    case 'snapshots': {
      const { image } = await node.found.entry.view();
      return image.snapshotNames();
    }
    default:
      throw noSuchFile(path);
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
