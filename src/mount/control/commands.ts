/**
 * The commands that are written to control files. Each command holds the locks that keep others
 * from interfering: first the catalog's `structure`, then the `commands` of the images, in the
 * order of their names.
 */
import { chmod, chown, realpath } from 'node:fs/promises';

import { LiveSnapshot } from '../cut/live-snapshot.js';
import { isGone, type Monitor } from '../../attach/monitor.js';
import {
  checkSnapshotName,
  Image,
  PcowError,
  snapshotTogether,
  takingAway,
} from '../../engine/index.js';
import type { Catalog, Found } from '../images/catalog.js';
import type { Cutter } from '../cut/cutter.js';
import { automaticName } from '../../images/automatic-name.js';
import { errnoOf } from '../failure.js';
import { flatFileOnly, type ImageEntry, snapshotFile } from '../images/image-entry.js';
import { checkNewImageName, imageFile } from '../../images/image-names.js';
import { debugLog, log } from '../log.js';
import type { Place } from '../place.js';

const debug = debugLog('commands');

export class Commands {
  readonly #place: Place;
  readonly #catalog: Catalog;
  readonly #cutter: Cutter;

  constructor(place: Place, catalog: Catalog, cutter: Cutter) {
    this.#place = place;
    this.#catalog = catalog;
    this.#cutter = cutter;
  }

  async snapshot(entry: ImageEntry, name: string): Promise<void> {
    await this.snapshotTogether([entry], name);
  }

  /** One cut across several images. */
  async snapshotTogether(entries: ImageEntry[], name: string): Promise<void> {
    checkSnapshotName(name);
    if (new Set(entries).size < entries.length) {
      throw new PcowError(
        'PCOW_INVALID',
        `an image is named twice in the snapshot ${JSON.stringify(name)}`,
      );
    }
    await holdingAll(entries, async () => {
      // Check this before any process is stopped.
      for (const entry of entries) {
        const { image } = await entry.view();
        if (image.snapshotNames().includes(name)) {
          throw new PcowError(
            'PCOW_EXISTS',
            `${entry.name} has a snapshot ${JSON.stringify(name)} already`,
          );
        }
      }
      await this.#takeWhoeverHas(entries, name, false);
      log(`${entries.map((entry) => entry.name).join(', ')}: snapshot ${name}`);
      for (const entry of entries) {
        entry.makeChecksums();
      }
    });
  }

  /**
   * Takes a snapshot of images that may change hands meanwhile, because a process releases one, or
   * ends. If this happens before the cut, nothing has been done, and the snapshot is taken again by
   * the new writer. After the commit, the snapshot has been taken. No process can attach meanwhile:
   * `commands` are held.
   */
  async #takeWhoeverHas(entries: ImageEntry[], name: string, automatic: boolean): Promise<void> {
    for (;;) {
      await Promise.all(entries.map(({ attachment }) => attachment.settled()));
      const before = entries.map(({ monitor }) => monitor);
      try {
        await this.#takeTogether(entries, name, automatic);
        return;
      } catch (error) {
        if (!isGone(error) && entries.every(({ monitor }, at) => monitor === before[at])) {
          throw error;
        }
        debug('%s: an image has changed hands: %o', name, error);
      }
      await Promise.all(entries.map(({ attachment }) => attachment.settled()));
      const taken = await Promise.all(entries.map((entry) => has(entry, name)));
      if (taken.every((it) => it)) {
        await Promise.all(entries.map(({ attachment }) => attachment.syncNow()));
        return;
      }
      for (const [at, entry] of entries.entries()) {
        if (taken[at] === true) {
          await this.#deleteWhoeverHas(entry, name);
        }
      }
    }
  }

  #deleteWhoeverHas(entry: ImageEntry, name: string): Promise<void> {
    return this.#byWhoeverHas(entry, {
      asked: (monitor) => monitor.request('delete', { text: name, undo: [] }),
      own: (image) => entry.long('delete', name, (options) => image.delete(name, options)),
      isDone: async () => !(await has(entry, name)),
    });
  }

  /**
   * A change that a monitor is `asked` for, or that this mount does as its `own`. If the image
   * changes hands meanwhile, the change is repeated, unless the process did it before it ended.
   */
  async #byWhoeverHas(
    entry: ImageEntry,
    change: {
      asked: (monitor: Monitor) => Promise<unknown>;
      own: (image: Image) => Promise<unknown>;
      isDone: () => Promise<boolean>;
    },
  ): Promise<void> {
    for (;;) {
      const { monitor, opening } = await entry.whoeverHas();
      try {
        await (monitor ? change.asked(monitor) : change.own(opening.image));
        return;
      } catch (error) {
        if (!isGone(error) && entry.monitor === monitor) {
          throw error;
        }
      }
      await entry.attachment.settled();
      if (await change.isDone()) {
        return;
      }
    }
  }

  /**
   * The cut across attached images and others. First the processes that have the others mapped are
   * stopped, then the monitors freeze their memory. The snapshot of the others is taken while all
   * of them stand still.
   */
  async #takeTogether(entries: ImageEntry[], name: string, automatic: boolean): Promise<void> {
    const attached = new Map(
      entries.flatMap((entry) => (entry.monitor ? [[entry.monitor, entry] as const] : [])),
    );
    const monitors = [...attached.keys()];
    const plain = entries.filter((entry) => entry.monitor === null);
    const images = await Promise.all(plain.map(async (entry) => (await entry.writer()).image));
    await this.#noneToStop(plain, monitors);
    const [first, ...others] = images;
    let taken = false;
    const take = async () => {
      await (first && others.length === 0 ? first.snapshot(name) : snapshotTogether(name, images));
      taken = true;
    };
    const takeAway = async () => {
      if (taken) {
        taken = false;
        await Promise.all(images.map((image) => image.delete(name)));
      }
    };
    if (monitors.length === 0) {
      await this.#cutter.run(plain, take, takeAway);
      return;
    }
    const live = new LiveSnapshot(attached, name, automatic);
    try {
      await live.prepare();
      const cut = async () => {
        await live.cut();
        if (images.length > 0) {
          await take();
        }
        await live.commit();
      };
      await this.#cutter.run(plain, cut, takeAway);
      await live.finish();
    } catch (error) {
      await live.undo();
      await takeAway();
      throw error;
    }
  }

  /** A stopped process cannot freeze its memory. */
  async #noneToStop(plain: ImageEntry[], monitors: Monitor[]): Promise<void> {
    if (plain.length === 0 || monitors.length === 0) {
      return;
    }
    const mappers = new Set((await this.#cutter.mappers(plain)).map(({ pid }) => pid));
    const both = monitors.find(({ pid }) => mappers.has(pid));
    if (both) {
      throw new PcowError(
        'PCOW_BUSY',
        `${both.process} is attached to one image of this snapshot, and has another mapped without the monitor: it can't be stopped for the cut`,
      );
    }
  }

  async rollback(entry: ImageEntry, name: string): Promise<void> {
    await entry.commands.run(async () => {
      const { image } = await entry.writer();
      image.layerOf(name);
      const busy = () => this.#catalog.inUse(entry, 'rolled back');
      await entry.exclusively(flatFileOnly, busy, () => image.rollback(name));
      log(`${entry.name}: rolled back to ${name}`);
    });
  }

  async delete(entry: ImageEntry, name: string): Promise<void> {
    // Without `structure`: a merge may take long, and clones of this image wait for its `commands`
    // anyway.
    await entry.commands.run(async () => {
      await entry.whoeverHas();
      const layer = (await entry.snapshot(name)).id;
      const what = `the snapshot ${name} of ${entry.name} can't be deleted`;
      const busy = () =>
        Promise.resolve(
          new PcowError(
            'PCOW_BUSY',
            `the snapshot ${name} of ${entry.name} can't be deleted while its file is open`,
          ),
        );
      await takingAway({ file: entry.file, what, layer }, () =>
        entry.exclusively(snapshotFile(name), busy, () => this.#deleteWhoeverHas(entry, name)),
      );
      log(`${entry.name}: snapshot ${name} deleted`);
    });
  }

  /** Renames a snapshot. Images that stand on it refer to its layer, and need no change. */
  async renameSnapshot(entry: ImageEntry, from: string, to: string): Promise<void> {
    checkSnapshotName(to);
    await entry.commands.run(async () => {
      await entry.whoeverHas();
      const { id } = await entry.snapshot(from);
      if (await has(entry, to)) {
        throw new PcowError(
          'PCOW_EXISTS',
          `${entry.name} has a snapshot ${JSON.stringify(to)} already`,
        );
      }
      // Open files refer to the snapshot by its name.
      const busy = () =>
        Promise.resolve(
          new PcowError(
            'PCOW_BUSY',
            `the snapshot ${from} of ${entry.name} can't be renamed while its file is open`,
          ),
        );
      await entry.exclusively(snapshotFile(from), busy, () =>
        this.#renameWhoeverHas(entry, id, from, to),
      );
      log(`${entry.name}: snapshot ${from} renamed to ${to}`);
    });
  }

  #renameWhoeverHas(entry: ImageEntry, id: number, from: string, to: string): Promise<void> {
    const undo = [{ name: 'rename' as const, text: `${to} ${from}` }];
    return this.#byWhoeverHas(entry, {
      asked: (monitor) => monitor.request('rename', { text: `${from} ${to}`, undo }),
      own: (image) => image.renameSnapshot(from, to),
      isDone: async () => (await has(entry, to)) && (await entry.snapshot(to)).id === id,
    });
  }

  /**
   * Makes a new image that stands on this one, as it is now or at a snapshot. It gets the owner and
   * the mode of this one.
   */
  async clone(source: Found, target: string, snapshot: string | null): Promise<void> {
    const { entry, status } = source;
    checkNewImageName(target);
    await this.#catalog.structure.run(() =>
      entry.commands.run(async () => {
        const file = imageFile(this.#place.directory, target);
        await this.#mustNotExist(target);
        const layer = await this.#layerFor(entry, snapshot);
        await Image.create(file, { base: { path: entry.file, layer } });
        await giveTo(file, status.mode, status.uid, status.gid);
        log(`${entry.name}: cloned to ${target}`);
        entry.makeChecksums();
      }),
    );
  }

  /** The frozen layer on which the clone will stand. */
  async #layerFor(entry: ImageEntry, snapshot: string | null): Promise<number> {
    const { monitor, opening } = await entry.whoeverHas();
    if (monitor) {
      const name = snapshot ?? automaticName();
      if (snapshot === null) {
        await this.#takeWhoeverHas([entry], name, true);
      }
      return (await entry.snapshot(name)).id;
    }
    const { image } = opening;
    return snapshot === null ? this.#freeze(entry, image) : image.layerOf(snapshot);
  }

  async #freeze(entry: ImageEntry, image: Image): Promise<number> {
    const name = automaticName();
    return this.#cutter.run(
      [entry],
      () => image.freezeForClone(name),
      async () => {
        if (image.snapshotNames().includes(name)) {
          await image.delete(name);
        }
      },
    );
  }

  async #mustNotExist(name: string): Promise<void> {
    try {
      await this.#catalog.find(name);
    } catch (error) {
      if (error instanceof PcowError && error.code === 'PCOW_NOT_FOUND') {
        return;
      }
      throw error;
    }
    throw new PcowError(
      'PCOW_EXISTS',
      `there is an image ${name} already: choose another name, or remove it first`,
    );
  }

  /**
   * Gives an image another base, or (null) none; its content stays. The commands of `base` are
   * held, so that it is not deleted meanwhile.
   */
  async rebase(entry: ImageEntry, base: ImageEntry | null, snapshot: string | null): Promise<void> {
    const held = base === null || base === entry ? [entry] : [entry, base];
    await holdingAll(held, async () => {
      const { image } = await entry.writer();
      const standing = base && { path: base.file, layer: await this.#layerFor(base, snapshot) };
      const text = base ? [base.name, snapshot ?? []].flat().join(' ') : 'now';
      await entry.long(base ? 'rebase' : 'flatten', text, (options) =>
        image.rebase(standing, options),
      );
      log(base ? `${entry.name}: now stands on ${base.name}` : `${entry.name}: flattened`);
    });
  }

  /**
   * Moves what an image has written into its base, as a snapshot there. Neither image may be in
   * use.
   */
  async commit(entry: ImageEntry, name: string): Promise<void> {
    checkSnapshotName(name);
    const base = await this.#baseOf(entry);
    await holdingAll([entry, base], async () => {
      const { image } = await entry.writer();
      const { image: into } = await base.writer();
      const busy = (used: ImageEntry) => () => this.#catalog.inUse(used, 'part of a commit');
      await entry.exclusively(flatFileOnly, busy(entry), () =>
        base.exclusively(flatFileOnly, busy(base), () =>
          entry.long('commit', name, (options) => image.commitInto(into, name, options)),
        ),
      );
      log(`${entry.name}: committed to ${base.name} as ${name}`);
    });
  }

  async #baseOf(entry: ImageEntry): Promise<ImageEntry> {
    const { base } = (await entry.view()).image.info();
    if (base === null) {
      throw new PcowError('PCOW_INVALID', `${entry.name} has no base to commit to`);
    }
    for (const name of await this.#catalog.names()) {
      const found = (await this.#catalog.find(name)).entry;
      if ((await realpath(found.file)) === base.resolved) {
        return found;
      }
    }
    throw new PcowError(
      'PCOW_BASE_OUTSIDE',
      `the base of ${entry.name}, ${base.resolved}, is not in this directory: end the mount, then use "pcow commit"`,
    );
  }

  /** Deletes the image. Its name must be repeated, so that no image is deleted by mistake. */
  async remove(entry: ImageEntry, name: string): Promise<void> {
    if (name !== entry.name) {
      throw new PcowError(
        'PCOW_INVALID',
        `to delete ${entry.name}, write its own name, not ${JSON.stringify(name)}`,
      );
    }
    await this.#catalog.remove(name);
  }

  async compact(entry: ImageEntry): Promise<void> {
    await entry.commands.run(async () => {
      const { image } = await entry.writer();
      await entry.long('compact', 'now', (options) => image.compact(options));
      log(`${entry.name}: compacted`);
    });
  }

  /**
   * Fetches everything that a lazy image lacks. Without `commands`: it changes no structure, and may
   * take long.
   */
  async prefetch(entry: ImageEntry, text: string): Promise<void> {
    await entry.fetching.prefetch(text);
    log(`${entry.name}: everything is here`);
  }

  async addChecksums(entry: ImageEntry): Promise<void> {
    await entry.commands.run(async () => {
      const { image } = await entry.writer();
      await entry.long('checksums', 'add', (options) => entry.checksums.run(image, options));
      log(`${entry.name}: checksums added to snapshots`);
    });
  }

  async removeChecksums(entry: ImageEntry): Promise<void> {
    await entry.commands.run(async () => {
      const { image } = await entry.writer();
      await entry.checksums.stop();
      await image.removeChecksums();
      log(`${entry.name}: checksums removed`);
    });
  }

  async resize(entry: ImageEntry, size: number, shrink: boolean): Promise<void> {
    await entry.commands.run(async () => {
      const { image } = await entry.writer();
      if (shrink) {
        const busy = () => this.#catalog.inUse(entry, 'made smaller');
        await entry.exclusively(flatFileOnly, busy, () => image.resize(size, { shrink }));
      } else {
        await image.resize(size);
      }
      log(`${entry.name}: resized to ${size} bytes`);
    });
  }
}

/**
 * Holds the `commands` of all images. They are taken in one order everywhere, or two cuts could
 * wait for each other.
 */
async function holdingAll<T>(entries: ImageEntry[], work: () => Promise<T>): Promise<T> {
  const ordered = [...entries].sort((a, b) => (a.name < b.name ? -1 : 1));
  const held = ordered.reduceRight<() => Promise<T>>(
    (inner, entry) => () => entry.commands.run(inner),
    work,
  );
  return held();
}

async function has(entry: ImageEntry, name: string): Promise<boolean> {
  return (await entry.view()).image.snapshotNames().includes(name);
}

/** As far as this process has the right: otherwise a clone belongs to the user of the mount. */
async function giveTo(file: string, mode: number, uid: number, gid: number): Promise<void> {
  try {
    await chown(file, uid, gid);
  } catch (error) {
    debug('%s keeps its owner: errno %d', file, errnoOf(error));
  }
  await chmod(file, mode & 0o777);
}
