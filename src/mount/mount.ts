/**
 * A mount in this process. The process must never access its own mount: the request would wait for
 * itself forever.
 */

import { AttachService } from './attach/attach-service.js';
import { type DirectoryLock, lockDirectory } from '../engine/directory-lock.js';
import { checkPlace, isPcowError, recoverDirectory } from '../engine/index.js';
import { onQuestion, onRelease } from '../engine/native-operations.js';
import { lifeOf, troubleOf } from '../images/mount-life.js';
import { mountsOfDirectory } from '../images/mount-table.js';
import { AttributeSource } from './fuse/attributes.js';
import { Catalog } from './images/catalog.js';
import { Commands } from './control/commands.js';
import { MountContext } from './context.js';
import { Cutter } from './cut/cutter.js';
import { sentenceOf } from './failure.js';
import { type FuseOptions, FuseSession } from './fuse/session.js';
import { handOver } from './daemon/hand-over.js';
import { debugLog, log } from './log.js';
import {
  checkedDirectory,
  checkedMountpoint,
  checkFuse,
  mountError,
  unmount,
} from './daemon/mountpoint.js';
import { OpenImages } from './images/open-images.js';
import { FileSystem } from './fuse/operations.js';
import { type MountOptions, settingsOf } from './options.js';
import type { Place } from './place.js';
import { word } from '../engine/quote.js';
import { Watchdog } from './daemon/watchdog.js';

const debug = debugLog('mount');

/** What went wrong when the images were closed at the end, by image. Empty if nothing did. */
export type EndFailures = EndFailure[];

/** An image whose closing failed. */
export interface EndFailure {
  /** Its name in the mount. */
  image: string;
  /** The exception. */
  error: unknown;
}

/** A mount that this process serves. */
export interface Mount {
  /** The image directory, as a real path. */
  readonly directory: string;
  /** As a real path. */
  readonly mountpoint: string;
  /** Resolves when the mount has ended, whatever ended it, and every image is synced and closed. */
  readonly ended: Promise<EndFailures>;
  /**
   * Ends the mount, and resolves when that is done. Rejects with EBUSY if a process has a file of
   * it open; the mount then continues.
   */
  unmount(): Promise<EndFailures>;
  /**
   * Removes the mount from the directory tree at once. It ends when no process has a file open,
   * except processes under the monitor: these continue, and the next mount of the directory finds
   * them.
   */
  detach(): Promise<void>;
  /**
   * `await using mounted = await mount(…)` unmounts it, and rejects with the first image that could
   * not be closed.
   */
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * Mounts an image directory. The bytes of a process's first mount are served natively, those of
 * later mounts through JavaScript. If it cannot be mounted, the error is a PcowError with the code
 * PCOW_MOUNT.
 */
export async function mountDirectory(
  directory: string,
  mountpoint: string,
  options: MountOptions = {},
): Promise<Mount> {
  const settings = settingsOf(options);
  await checkFuse();
  const real = await checkedDirectory(directory);
  const place: Place = {
    directory: real,
    mountpoint: await checkedMountpoint(mountpoint, real),
    device: '',
    socket: '',
    noMonitors: null,
    settings,
    openImages: await OpenImages.ofThisProcess(),
    watchdog: new Watchdog(real),
  };
  const lock = await lockOf(place);
  try {
    return await begin(place, lock);
  } catch (error) {
    lock.release();
    throw error;
  }
}

async function lockOf({ directory }: Place): Promise<DirectoryLock> {
  try {
    return lockDirectory(directory);
  } catch (error) {
    if (!isPcowError(error, 'PCOW_LOCKED')) {
      throw error;
    }
    throw mountError(await whyLocked(directory), error, 'EBUSY');
  }
}

async function whyLocked(directory: string): Promise<string> {
  for (const mount of await mountsOfDirectory(directory)) {
    const life = await lifeOf(mount);
    // Skip dead mounts: one may exist beside the mount that serves the directory.
    if (life.state === 'dead') continue;
    const { mountpoint } = mount;
    const trouble = troubleOf(mount, life);
    return trouble === null
      ? `${directory} is mounted on ${mountpoint} already: use that mount, or end it with "pcow umount ${word(mountpoint)}"`
      : `${trouble.message}: ${trouble.cure}`;
  }
  return `${directory} is served by a mount that is just ending, or that this process can't see: wait until it ends`;
}

async function begin(place: Place, lock: DirectoryLock): Promise<Mount> {
  const attributes = new AttributeSource(place);
  const catalog = new Catalog(place, (entry) => {
    attributes.forget(entry);
  });
  await catalog.removeRemains();
  if (!place.settings.readOnly) {
    await checkFileSystem(place.directory);
    await recoverImages(place.directory);
  }
  const cutter = new Cutter(place, (entry) => attributes.inodeOf(entry));
  const commands = new Commands(place, catalog, cutter);
  const context = new MountContext(place, catalog, commands, attributes);
  const fileSystem = new FileSystem(context);

  onQuestion(
    (question) => fileSystem.answer(question),
    (block) => context.fetchers.fetchBlock(block),
  );
  onRelease((handle) => {
    context.files.close(handle);
  });
  const session = new FuseSession(
    place.directory,
    place.mountpoint,
    fileSystem.operations,
    fuseOptions(place),
  );
  await started(session, place);
  context.native = session.native;
  const attachService = await AttachService.start({
    place,
    catalog,
    attributes,
    cutter,
    fetchers: context.fetchers,
  });
  context.store = () => attachService?.store ?? null;

  let over = false;
  const ended = session.ended.then(async () => {
    over = true;
    debug('the session on %s is over', place.mountpoint);
    attachService?.stop();
    await context.fetchers.stop();
    const failures = await catalog.shutDown();
    if (failures.length === 0) place.watchdog.close();
    for (const { image, error } of failures) {
      log(`${image}: closing failed: ${sentenceOf(error)}`);
    }
    await session.letGo();
    lock.release();
    log(`${place.directory} is no longer mounted on ${place.mountpoint}`);
    return failures;
  });
  log(`${place.directory} is mounted on ${place.mountpoint}`);
  return {
    directory: place.directory,
    mountpoint: place.mountpoint,
    ended,
    unmount: async () => {
      await unmount(place.mountpoint);
      return ended;
    },
    detach: () =>
      handOver(
        place,
        () => fileSystem.needed,
        () => over,
      ),
    [Symbol.asyncDispose]: async () => {
      await unmount(place.mountpoint);
      const [failure] = await ended;
      if (failure !== undefined) throw failure.error;
    },
  };
}

async function checkFileSystem(directory: string): Promise<void> {
  try {
    await checkPlace(directory);
  } catch (error) {
    if (isPcowError(error, 'PCOW_UNSUPPORTED'))
      throw mountError(error.message, error, 'EOPNOTSUPP');
    // The check is not possible in this directory, because it is full or belongs to another user;
    // its images can still be read.
    debug('%s: %s', directory, sentenceOf(error));
  }
}

/**
 * Makes durable what a killed mount has left unsynced, or a guest that continued without a mount.
 * This runs before any process can use the images.
 */
async function recoverImages(directory: string): Promise<void> {
  const { recovered, failed } = await recoverDirectory(directory);
  for (const image of recovered)
    log(`${image} has been recovered: a process that was killed had it open`);
  // The next process that opens the image gets the error, too.
  for (const { image, error } of failed) log(`${image} can't be recovered: ${sentenceOf(error)}`);
}

async function started(session: FuseSession, place: Place): Promise<void> {
  let device: string | null;
  try {
    device = await session.begin();
  } catch (cause) {
    const hint = place.settings.allowOther
      ? 'for --allow-other as a normal user, /etc/fuse.conf needs the line user_allow_other'
      : 'its own message is above; a normal user needs write permission on the mountpoint';
    throw mountError(
      `FUSE could not mount on ${place.mountpoint} (${sentenceOf(cause)}): ${hint}`,
      cause,
    );
  }
  if (device === null) {
    throw mountError(`${place.mountpoint} was unmounted at once by another process`);
  }
  if (!session.native) {
    log(
      `${place.mountpoint}: bytes go through JavaScript, because only the first mount of a process has the native operations`,
    );
  }
  place.device = device;
}

function fuseOptions({ directory, settings }: Place): FuseOptions {
  return {
    timeout: false,
    fsname: directory.replace(/[\\,]/g, '\\$&'),
    // fuse-native has no options for these, and passes the subtype on unchanged.
    subtype: [
      'pcow',
      'big_writes',
      'use_ino', // holders.ts recognises flat files by their inode numbers
      'hard_remove', // without it, libfuse would rename an open file that is removed
      'default_permissions',
      ...(settings.readOnly ? ['ro'] : []),
      ...(settings.sync ? ['sync'] : []),
      ...(settings.noExec ? ['noexec'] : []),
    ].join(','),
    allowOther: settings.allowOther,
    // Images change from outside, and control files change by themselves. The attributes show when
    // a name is gone.
    attrTimeout: '0',
    entryTimeout: '1',
  };
}
