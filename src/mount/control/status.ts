/**
 * The `status` control files: JSON for people and programs. docs/control-files.md defines the field
 * names.
 */
import { attachmentStatus } from '../../attach/attachment-status.js';
import { sentenceOf } from '../failure.js';
import type { ImageEntry } from '../images/image-entry.js';
import { errorFields } from './last-error.js';
import type { MountContext } from '../context.js';
import { RESERVED_NAMES } from '../../images/image-names.js';
import { storeStatus } from './store-status.js';
import type { Work } from '../images/work.js';

/** `.pcow/NAME/status`. Never fails: if something is wrong with the image, the text says so. */
export async function imageStatus(entry: ImageEntry): Promise<string> {
  const { state, problem } = await entry.state();
  return json({
    name: entry.name,
    path: entry.file,
    state,
    problem,
    ...(state === 'ok' ? await details(entry) : {}),
    lastError: entry.lastError && errorFields(entry.lastError),
  });
}

async function details(entry: ImageEntry): Promise<object> {
  const { image } = await entry.view();
  const info = image.info();
  return {
    size: info.size,
    blockSize: info.blockSize,
    diskUse: info.diskUse,
    snapshots: info.snapshots,
    uuid: info.uuid,
    formatVersion: info.formatVersion,
    clean: info.clean,
    writable: info.writable,
    base: info.base,
    chain: info.chain,
    holder: info.holder && {
      ...info.holder,
      mount: info.holder.host === null && info.holder.pid === process.pid,
    },
    attached: entry.monitor && (await attachmentStatus(entry.monitor)),
    readers: await Promise.all([...entry.readers].map(attachmentStatus)),
    open: openFiles(entry),
    working: entry.works[0] ? workFields(entry.works[0]) : null,
    lazy: info.lazy ? { remoteBytes: await image.remoteBytes(), ...lazyFields(entry) } : null,
  };
}

/** What is known since the mount has begun to fetch. */
function lazyFields({ fetching: { state, locked } }: ImageEntry): object {
  return {
    reference: state?.reference ?? null,
    waiting: state?.waiting ?? (locked && { ...locked, snapshot: null, offset: null }),
    limit: state?.limit ?? null,
    givenBackBytes: state?.givenBackBytes ?? 0,
    requests: state?.requests ?? 0,
    fetchedBytes: state?.fetchedBytes ?? 0,
  };
}

function openFiles(entry: ImageEntry): object {
  const uses = [...entry.uses];
  const flat = uses.filter(({ snapshot }) => snapshot === null);
  return {
    reading: flat.filter(({ writable }) => !writable).length,
    writing: flat.filter(({ writable }) => writable).length,
    snapshots: uses.length - flat.length,
  };
}

/** In `.pcow/status`: a process that has an image attached. */
export interface UsingProcess {
  pid: number;
  command: string;
}

/** `.pcow/status`: the mount itself. */
export async function mountStatus({
  place,
  catalog,
  lastError,
  store,
}: MountContext): Promise<string> {
  const entries: ImageEntry[] = [];
  const images = await Promise.all(
    (await catalog.names()).map(async (name) => {
      try {
        const { entry } = await catalog.find(name);
        entries.push(entry);
        const reserved = RESERVED_NAMES.includes(name) && {
          note: `a control file has this name: rename the image to get control files for it`,
        };
        const { state, problem } = await entry.state();
        return { name, state, problem, processes: processesOf(entry), ...reserved };
      } catch (error) {
        return { name, state: 'unreadable', problem: sentenceOf(error) };
      }
    }),
  );
  return json({
    directory: place.directory,
    mountpoint: place.mountpoint,
    pid: process.pid,
    ...place.settings,
    cleanStore: await storeStatus(store(), entries),
    monitors: { socket: place.socket || null, problem: place.noMonitors },
    images,
    lastError: lastError && errorFields(lastError),
  });
}

/** The processes that have it attached, to write or to read. */
function processesOf({ monitor, readers }: ImageEntry): UsingProcess[] {
  return [...(monitor === null ? [] : [monitor]), ...readers].map(({ pid, command }) => ({
    pid,
    command,
  }));
}

function workFields({ command, text, since, done, total }: Work): object {
  return { command, text, since: since.toISOString(), done, total };
}

function json(value: object): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

/** `.pcow/NAME/snapshots`: one line for each, oldest first. */
export async function snapshotLines(entry: ImageEntry): Promise<string> {
  const { image } = await entry.view();
  return image
    .snapshots()
    .map((snapshot) => `${JSON.stringify(snapshot)}\n`)
    .join('');
}
