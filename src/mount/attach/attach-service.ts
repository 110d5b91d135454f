/**
 * Attaching: a process shows the mount its open flat file, and gets the image itself, to map it
 * into its memory. From then on, the process is the image's writer, and the mount only reads
 * (Attachment.lend), until the connection ends.
 *
 * The descriptor proves the right: the kernel checked the permissions when the file was opened. The
 * pid and uid of the process are known, but used for messages only.
 */
import { constants } from 'node:fs';

import {
  type AttachEvent,
  type AttachServer,
  startAttachServer,
  type StoreFigures,
} from '../../engine/attach-server.js';
import { type ChainLink, PcowError, type RemoteBlock } from '../../engine/index.js';
import type { AttributeSource } from '../fuse/attributes.js';
import type { Catalog } from '../images/catalog.js';
import type { Cutter } from '../cut/cutter.js';
import { errnoOf, refusal, sentenceOf } from '../failure.js';
import { describeProcess, textOf } from '../../engine/processes.js';
import type { ImageEntry } from '../images/image-entry.js';
import { debugLog, log } from '../log.js';
import { flatFilePath, type Place } from '../place.js';
import { loopDevicesOn } from '../../attach/loop-devices.js';
import { isGone, Monitor } from '../../attach/monitor.js';
import { socketPath } from '../../attach/socket-path.js';
import { watchForStalls } from './stall-watch.js';

const debug = debugLog('attach');

type AttachRequest = Extract<AttachEvent, { kind: 'attach' }>;
type ResumeRequest = Extract<AttachEvent, { kind: 'resume' }>;
type FetchRequest = Extract<AttachEvent, { kind: 'fetch' }>;

/** Linux: the descriptor only names a file, and cannot read it. */
const O_PATH = 0o10000000;
const ACCESS_MODE = 0o3;

/**
 * The kernel's limit of descriptors in one message, less a few: kMaxDescriptors of the protocol.
 */
const MAX_FILES = 250;

/** What a monitor has attached. */
interface Attached {
  entry: ImageEntry;
  /** Of the snapshot whose file it has; null: the flat file. */
  layer: number | null;
}

export interface AttachContext {
  place: Place;
  catalog: Catalog;
  attributes: AttributeSource;
  cutter: Cutter;
  /** Resolves when the block may be read again. */
  fetchers: { fetchBlock(block: RemoteBlock): Promise<void> };
}

export class AttachService {
  readonly #context: AttachContext;
  readonly #server: AttachServer;
  readonly #monitors = new Map<number, Monitor>();
  readonly #attached = new Map<Monitor, Attached>();
  /**
   * What to do when a monitor gives its image back ('releasing'), or its connection ends without
   * that.
   */
  readonly #endings = new Map<Monitor, (how: 'releasing' | 'lost') => Promise<void> | void>();

  private constructor(context: AttachContext, socket: string) {
    this.#context = context;
    const { cleanStore } = context.place.settings;
    this.#server = startAttachServer(socket, cleanStore, (event) => {
      this.#heard(event);
    });
  }

  /** The clean store; null if the mount has none. */
  get store(): StoreFigures | null {
    const figures = this.#server.store();
    return figures.budget === 0 ? null : figures;
  }

  /** If no socket can be made, the mount works nevertheless, and says why no process can attach. */
  static async start(context: AttachContext): Promise<AttachService | null> {
    const { place } = context;
    try {
      const socket = await socketPath(place.directory);
      const service = new AttachService(context, socket);
      place.socket = socket;
      return service;
    } catch (error) {
      place.noMonitors = `no process can attach to the images of ${place.directory}: ${sentenceOf(error)}`;
      log(place.noMonitors);
      return null;
    }
  }

  /**
   * Attached processes continue without the mount, and wait for the next mount of the directory.
   */
  stop(): void {
    this.#context.place.socket = '';
    this.#server.stop();
  }

  #heard(event: AttachEvent): void {
    debug('%o', event);
    if (event.kind === 'attach' || event.kind === 'resume') {
      void this.#answer(event);
      return;
    }
    const monitor = this.#monitors.get(event.connection);
    if (!monitor) {
      return;
    }
    if (event.kind === 'want') {
      void this.#giveBases(monitor);
      return;
    }
    if (event.kind === 'fetch') {
      void this.#fetch(monitor, event);
      return;
    }
    // First take the image back, then tell the callers whose requests have failed because of that.
    if (event.kind === 'release') {
      void this.#end(monitor, 'releasing').then(() => {
        this.#server.released(monitor.connection);
      });
    } else if (event.kind === 'closed') {
      this.#monitors.delete(event.connection);
      void this.#end(monitor, 'lost');
    }
    monitor.heard(event);
  }

  /**
   * A base of the image has another base now, which the process was not given. Never rejects: the
   * monitor asks again as long as it needs the base.
   */
  async #giveBases(monitor: Monitor): Promise<void> {
    const attached = this.#attached.get(monitor);
    const bases = attached ? (await chainFiles(attached).catch(failed)).slice(1) : [];
    await monitor.giveBases(bases).catch(failed);

    function failed(error: unknown): string[] {
      if (!isGone(error)) attached?.entry.failed('attach', error);
      return [];
    }
  }

  /** Never rejects: the monitor asks again as long as a fault waits for the block. */
  async #fetch(monitor: Monitor, { id, text }: FetchRequest): Promise<void> {
    const attached = this.#attached.get(monitor);
    try {
      const block = blockOf(text);
      // The text comes from another process, so it must not lead to a file that is not below the
      // image. (After the base was renamed, the process still knows it by its old path.)
      const chain = attached ? await chainOf(attached) : [];
      const here = chain.filter(({ layer }) => layer === block.layer).map((link) => link.path);
      const file = here.includes(block.path) ? block.path : here[0];
      if (file === undefined) {
        throw new PcowError('PCOW_INVALID', `${block.path} has no such layer below the image`);
      }
      await this.#context.fetchers.fetchBlock({ ...block, path: file });
      monitor.fetched(id, '');
    } catch (error) {
      attached?.entry.failed('fetch', error);
      monitor.fetched(id, sentenceOf(error));
    }
  }

  /**
   * Tells a process that its faults on remote blocks can be served. Never rejects: the monitor of
   * an older version does not know the request, and its guest waits.
   */
  async #offerFetches(entry: ImageEntry, monitor: Monitor): Promise<void> {
    try {
      const { image } = await entry.view();
      const { lazy, standsOnLazy } = image.info();
      if (lazy || standsOnLazy) await monitor.request('may fetch');
    } catch (error) {
      debug('%s cannot wait for remote bytes: %s', monitor.process, sentenceOf(error));
    }
  }

  async #end(monitor: Monitor, how: 'releasing' | 'lost'): Promise<void> {
    this.#attached.delete(monitor);
    const ending = this.#endings.get(monitor);
    this.#endings.delete(monitor);
    try {
      await ending?.(how);
    } catch (error) {
      log(`after the end of ${monitor.process}: ${sentenceOf(error)}`);
    }
  }

  /** Never rejects: an error becomes a refusal. */
  async #answer(event: AttachRequest | ResumeRequest): Promise<void> {
    const { connection, pid, uid } = event;
    const writable = event.kind === 'resume' || event.writable;
    const command = textOf(`/proc/${pid}/comm`).then((text) => text.trimEnd());
    // Registered before the first `await`: the end of the connection may be reported at any time
    // from here on.
    const monitor = new Monitor(this.#server, connection, pid, uid, writable);
    this.#monitors.set(connection, monitor);
    let attached: Attached | null = null;
    try {
      monitor.command = await command;
      attached = await this.#fileOf(event);
      this.#attached.set(monitor, attached);
      await this.#attach(attached, monitor, event);
      const how = `${event.kind === 'resume' ? 'again ' : ''}attached to ${monitor.process}`;
      log(`${attached.entry.name}: ${how}${writable ? '' : ', to read'}`);
    } catch (error) {
      attached?.entry.failed('attach', error);
      debug('connection %d refused: %s', connection, sentenceOf(error));
      this.#server.refuse(connection, errnoOf(error), sentenceOf(error));
    }
  }

  async #fileOf(event: AttachRequest | ResumeRequest): Promise<Attached> {
    return event.kind === 'attach'
      ? this.#shown(event)
      : { entry: await this.#resumed(event), layer: null };
  }

  #attach(
    attached: Attached,
    monitor: Monitor,
    event: AttachRequest | ResumeRequest,
  ): Promise<void> {
    const { entry } = attached;
    if (event.kind === 'resume') {
      // Without `commands`: a command that holds it may wait for this. The process has the image in
      // any case.
      return this.#lend(entry, monitor, 'as before');
    }
    return event.writable
      ? this.#attachWriter(entry, monitor)
      : this.#attachReader(attached, monitor);
  }

  /**
   * Returns the image whose flat file, or file of a snapshot, the descriptor has open. Checks that
   * the file is open with the rights that are requested.
   */
  async #shown({ device, inode, flags, writable }: AttachRequest): Promise<Attached> {
    const { place, catalog, attributes } = this.#context;
    const shown = device === place.device ? attributes.fileWith(inode, catalog.known) : undefined;
    if (!shown) {
      throw refusal(
        'EINVAL',
        'PCOW_INVALID',
        `the descriptor is not an open flat file of ${place.mountpoint}`,
      );
    }
    const { entry } = shown;
    const found = await catalog.find(entry.name);
    if (found.entry !== entry) {
      throw refusal(
        'ESTALE',
        'PCOW_NOT_FOUND',
        `the image file of ${entry.name} has been replaced: open it again`,
      );
    }
    const access = flags & ACCESS_MODE;
    const enough = writable
      ? access === constants.O_RDWR && shown.layer === null
      : access !== constants.O_WRONLY;
    if (!enough || (flags & O_PATH) !== 0) {
      throw new PcowError(
        'PCOW_PERMISSION',
        `the flat file of ${entry.name} is not open for ${writable ? 'reading and writing' : 'reading'}`,
      );
    }
    return shown;
  }

  /**
   * Returns the image whose file the descriptor has open. The server checks whether the descriptor
   * has the lock.
   */
  async #resumed({ identity, uuid }: ResumeRequest): Promise<ImageEntry> {
    const { place, catalog } = this.#context;
    for (const name of await catalog.names()) {
      const { entry } = await catalog.find(name).catch(() => ({ entry: null }));
      if (entry?.identity === identity) {
        const { image } = await entry.view();
        if (image.info().uuid !== uuid) {
          break;
        }
        return entry;
      }
    }
    throw new PcowError('PCOW_NOT_FOUND', `the image ${uuid} is not in ${place.directory}`);
  }

  async #attachWriter(entry: ImageEntry, monitor: Monitor): Promise<void> {
    const { place, cutter } = this.#context;
    if (place.settings.readOnly) {
      throw new PcowError(
        'PCOW_READ_ONLY',
        `${entry.name} is mounted read-only: mount its directory for writing`,
      );
    }
    const { image } = await entry.view();
    if ((await image.remoteBytes()) > 0) {
      throw new PcowError(
        'PCOW_REMOTE',
        `${entry.name} is not complete: a process that has it could not be given what is fetched. Run pcow prefetch, or map a clone of it`,
      );
    }
    await entry.commands.run(async () => {
      await entry.attachment.settled();
      if (entry.monitor === null) {
        await this.#aloneFor(entry);
        await cutter.flush([entry]);
      }
      await this.#lend(entry, monitor, await chainFiles({ entry, layer: null }));
    });
  }

  /**
   * Once a monitor has the image, the changed pages of other processes could not be written back
   * any more.
   */
  async #aloneFor(entry: ImageEntry): Promise<void> {
    const mappers = await this.#context.cutter.mappers([entry]);
    const who = await Promise.all(mappers.map(({ pid }) => describeProcess(pid)));
    who.push(...(await loopDevicesOn(flatFilePath(this.#context.place, entry.name))));
    if (who.length > 0) {
      throw new PcowError(
        'PCOW_BUSY',
        `${entry.name} can't be attached while it is used without a monitor by ${who.join(', ')}: end that first`,
      );
    }
  }

  async #lend(entry: ImageEntry, monitor: Monitor, files: string[] | 'as before'): Promise<void> {
    this.#endings.set(monitor, (how) => this.#takeBack(entry, monitor, how));
    try {
      await entry.attachment.lend(monitor);
      if (files !== 'as before') {
        // A process that has mapped it in the meantime could not write its changes back.
        await this.#aloneFor(entry);
      }
      await monitor.handOver(files);
      entry.attachment.handedOver(monitor);
      void this.#offerFetches(entry, monitor);
      void this.#share({ entry, layer: null }, monitor);
      void watchForStalls(entry, monitor);
    } catch (error) {
      await this.#end(monitor, 'lost');
      throw error;
    }
  }

  /**
   * Offers the clean store to a process. Never rejects: without it, the process makes copies of its
   * own, as does the monitor of an older version, which does not know the request.
   */
  async #share(attached: Attached, monitor: Monitor): Promise<void> {
    const { settings, directory } = this.#context.place;
    const { entry, layer } = attached;
    try {
      if (this.store === null) return;
      const chain = await chainOf(attached);
      // All of a snapshot is shared, and of an image what it stands on.
      const shared = layer === null ? chain.find(({ path }) => path !== entry.file) : chain[0];
      if (shared === undefined) return;
      await monitor.share(shared, settings.allowOutsideBase ? '' : directory);
    } catch (error) {
      debug('%s shares no memory: %s', monitor.process, sentenceOf(error));
    }
  }

  async #takeBack(entry: ImageEntry, monitor: Monitor, how: 'releasing' | 'lost'): Promise<void> {
    if (entry.monitor === monitor) {
      log(`${entry.name}: no longer attached to ${monitor.process}`);
      await entry.attachment.takeBack(monitor, how);
    }
  }

  /**
   * Counts as an open file: what is forbidden while a file is open is also forbidden while it is
   * mapped.
   */
  async #attachReader(attached: Attached, monitor: Monitor): Promise<void> {
    const { entry, layer } = attached;
    const use = await entry.open(layer === null ? null : await nameOf(entry, layer), false);
    entry.readers.add(monitor);
    this.#endings.set(monitor, () => {
      entry.readers.delete(monitor);
      entry.close(use);
    });
    try {
      await monitor.handOver(await chainFiles(attached));
      void this.#offerFetches(entry, monitor);
      void this.#share(attached, monitor);
    } catch (error) {
      await this.#end(monitor, 'lost');
      throw error;
    }
  }
}

/** The text of a 'fetch'. */
function blockOf(text: string): RemoteBlock {
  const [, uuid, layer, block, path] =
    /^([0-9a-f-]{36}) (\d{1,15}) (\d{1,10}) (.+)$/s.exec(text) ?? [];
  if (uuid === undefined || layer === undefined || block === undefined || path === undefined) {
    throw new PcowError('PCOW_INVALID', 'the process needs a block that cannot exist');
  }
  return { uuid, layer: Number(layer), block: Number(block), path };
}

/** The layers that it reads from, itself first. */
async function chainOf({ entry, layer }: Attached): Promise<ChainLink[]> {
  const { image } = await entry.view();
  return image.chain(layer ?? undefined);
}

/**
 * The image file and those of its bases, each once, in the order of the chain. Whoever opens a
 * snapshot opens the image as well, which may stand on others now.
 */
async function chainFiles(attached: Attached): Promise<string[]> {
  const image = { ...attached, layer: null };
  const links = [...(await chainOf(attached)), ...(await chainOf(image))];
  const files = [...new Set(links.map(({ path }) => path))];
  if (files.length > MAX_FILES) {
    throw new PcowError(
      'PCOW_LIMIT',
      `${attached.entry.name} stands on ${files.length - 1} images: at most ${MAX_FILES - 1} can be attached`,
    );
  }
  return files;
}

/** The name of a snapshot. */
async function nameOf(entry: ImageEntry, layer: number): Promise<string> {
  const { image } = await entry.view();
  const found = image.snapshots({ countData: false }).find(({ id }) => id === layer);
  if (found) return found.name;
  throw refusal('ESTALE', 'PCOW_NOT_FOUND', `the snapshot of ${entry.name} has been deleted`);
}
