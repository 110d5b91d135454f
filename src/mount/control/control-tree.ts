/** The control files: the text that each shows, and the command that each runs. */
import { attachmentMetrics } from '../attach/attachment-metrics.js';
import {
  type ImageControl,
  type ImageReport,
  type MountControl,
  WITHOUT_LIMIT,
} from '../../images/control-names.js';
import { PcowError } from '../../engine/index.js';
import type { Catalog, Found } from '../images/catalog.js';
import type { MountContext } from '../context.js';
import { encodeTrace } from '../../registry/trace.js';
import { wordsOf } from './control-text.js';
import { HELP } from './help.js';
import type { ImageEntry } from '../images/image-entry.js';
import { imageMetrics } from './metrics.js';
import { type Family, prometheusText } from './prometheus.js';
import { storeMetrics, storeStatus } from './store-status.js';
import { imageStatus, mountStatus, snapshotLines } from './status.js';

/** A control file of an image (Subject: Found) or of the mount (Subject: null). */
export interface Control<Subject> {
  read(context: MountContext, subject: Subject): Promise<string>;
  /** Absent: the file is read-only. Returns when the command is done. */
  write?(context: MountContext, subject: Subject, text: string): Promise<void>;
}

export const imageControls: ReadonlyMap<string, Control<Found>> = new Map<
  ImageControl | ImageReport,
  Control<Found>
>([
  ['status', { read: (_, { entry }) => imageStatus(entry) }],
  ['snapshots', { read: (_, { entry }) => snapshotLines(entry) }],
  ['metrics', { read: (_, { entry }) => allMetrics([entry]) }],
  ['trace', { read: (_, { entry }) => Promise.resolve(traceText(entry)) }],
  [
    'snapshot',
    {
      read: (_, { entry }) => usage(entry, 'write NAME to take a snapshot; the newest is', newest),
      write: (context, { entry }, text) =>
        context.commands.snapshot(entry, oneWord(text, 'the name of the new snapshot')),
    },
  ],
  [
    'rollback',
    {
      read: (_, { entry }) =>
        usage(entry, 'write NAME to go back to that snapshot; the image stands on', current),
      write: (context, { entry }, text) =>
        context.commands.rollback(entry, oneWord(text, 'the name of a snapshot')),
    },
  ],
  [
    'rename',
    {
      read: (_, { entry }) => usage(entry, 'write OLD NEW to rename that snapshot; there are', all),
      write: (context, { entry }, text) => {
        const [from = '', to = ''] = wordsOf(text, 2, 2, 'the name of a snapshot and its new name');
        return context.commands.renameSnapshot(entry, from, to);
      },
    },
  ],
  [
    'delete',
    {
      read: (_, { entry }) => usage(entry, 'write NAME to delete that snapshot; there are', all),
      write: (context, { entry }, text) =>
        context.commands.delete(entry, oneWord(text, 'the name of a snapshot')),
    },
  ],
  [
    'clone',
    {
      read: (_, { entry }) =>
        usage(
          entry,
          'write NEWIMAGE or NEWIMAGE NAME to make a new image that stands on this one; its snapshots:',
          all,
        ),
      write: (context, found, text) => {
        const [target = '', snapshot = null] = wordsOf(
          text,
          1,
          2,
          'NEWIMAGE, or NEWIMAGE and the name of a snapshot',
        );
        return context.commands.clone(found, target, snapshot);
      },
    },
  ],
  [
    'remove',
    {
      read: (_, { entry }) =>
        Promise.resolve(
          `write ${entry.name} to delete the image with all its snapshots; no process may have it open\n`,
        ),
      write: (context, { entry }, text) =>
        context.commands.remove(entry, oneWord(text, 'the name of the image to delete')),
    },
  ],
  [
    'resize',
    {
      read: async (_, { entry }) => {
        const { image } = await entry.view();
        return `write BYTES to make the image larger, or "BYTES shrink" to make it smaller; it has ${image.size()}\n`;
      },
      write: (context, { entry }, text) => {
        const [size = '', how] = wordsOf(text, 1, 2, 'a number of bytes, or one and "shrink"');
        if (how !== undefined && how !== 'shrink') {
          throw new PcowError(
            'PCOW_INVALID',
            `write "shrink" or nothing after the number of bytes, not "${how}"`,
          );
        }
        return context.commands.resize(entry, bytesIn(size), how !== undefined);
      },
    },
  ],
  [
    'rebase',
    {
      read: (_, { entry }) =>
        usage(
          entry,
          'write IMAGE or IMAGE SNAPSHOT to stand on that image; the content stays; the base is',
          baseName,
        ),
      write: async (context, { entry }, text) => {
        const [base = '', snapshot = null] = wordsOf(
          text,
          1,
          2,
          'IMAGE, or IMAGE and the name of a snapshot',
        );
        await context.commands.rebase(
          entry,
          (await context.catalog.findSound(base)).entry,
          snapshot,
        );
      },
    },
  ],
  [
    'flatten',
    {
      read: (_, { entry }) =>
        usage(
          entry,
          'write "now" to copy everything from the base, and stand on no base; the base is',
          baseName,
        ),
      write: (context, { entry }, text) => {
        now(text);
        return context.commands.rebase(entry, null, null);
      },
    },
  ],
  [
    'commit',
    {
      read: (_, { entry }) =>
        usage(
          entry,
          'write NAME to move what the image has written into the base, as a snapshot there; the base is',
          baseName,
        ),
      write: (context, { entry }, text) =>
        context.commands.commit(entry, oneWord(text, 'the name of the new snapshot of the base')),
    },
  ],
  [
    'compact',
    {
      read: async (_, { entry }) => {
        const { image } = await entry.view();
        return `write "now" to give back blocks that hold only zeros; the image takes ${image.info().diskUse} bytes on disk\n`;
      },
      write: (context, { entry }, text) => {
        now(text);
        return context.commands.compact(entry);
      },
    },
  ],
  [
    'prefetch',
    {
      read: async (_, { entry }) => {
        const { image } = await entry.view();
        return `write "now" to fetch everything that the image lacks: ${await image.remoteBytes()} bytes\n`;
      },
      write: (context, { entry }, text) => {
        if (text !== WITHOUT_LIMIT) now(text);
        return context.commands.prefetch(entry, text);
      },
    },
  ],
  [
    'checksums',
    {
      read: () =>
        Promise.resolve('write "add" to add checksums to all snapshots, "remove" to remove them\n'),
      write: (context, { entry }, text) => {
        const word = oneWord(text, '"add" or "remove"');
        if (word === 'add') {
          return context.commands.addChecksums(entry);
        }
        if (word === 'remove') {
          return context.commands.removeChecksums(entry);
        }
        throw new PcowError('PCOW_INVALID', `write "add" or "remove", not ${JSON.stringify(word)}`);
      },
    },
  ],
  [
    'cancel',
    {
      read: (_, { entry }) =>
        Promise.resolve(`write COMMAND to stop it; in progress: ${inProgress(entry)}\n`),
      write: (_, { entry }, text) => {
        entry.cancel(
          wordsOf(text, 1, Infinity, 'the name of a command that is in progress').join(' '),
        );
        return Promise.resolve();
      },
    },
  ],
]);

/** The only control file of an image that cannot be opened. */
export const STATUS = 'status';

export const mountControls: ReadonlyMap<string, Control<null>> = new Map<
  MountControl,
  Control<null>
>([
  ['help', { read: () => Promise.resolve(HELP) }],
  ['status', { read: (context) => mountStatus(context) }],
  [
    'metrics',
    {
      read: async (context) => {
        const entries = await everyEntry(context.catalog);
        return allMetrics(entries, storeMetrics(await storeStatus(context.store(), entries)));
      },
    },
  ],
  [
    'snapshot',
    {
      read: async (context) => {
        const names = (await soundEntries(context.catalog)).map(({ name }) => name);
        return `write "NAME IMAGE IMAGE ..." to take one snapshot of several images at one moment; images: ${names.join(' ')}\n`;
      },
      write: async (context, _, text) => {
        const [name = '', ...images] = wordsOf(
          text,
          2,
          Infinity,
          'the name of the new snapshot and the images',
        );
        const found = await Promise.all(images.map((image) => context.catalog.findSound(image)));
        await context.commands.snapshotTogether(
          found.map(({ entry }) => entry),
          name,
        );
      },
    },
  ],
]);

/** What readers of a lazy image have needed since the mount began, as docs/registry.md has it. */
function traceText({ fetching }: ImageEntry): string {
  return `${encodeTrace(fetching.trace).toString()}\n`;
}

function inProgress({ works: [work] }: ImageEntry): string {
  if (work === undefined) return '(none)';
  const part = work.total === 0 ? '' : `, ${Math.floor((100 * work.done) / work.total)} % done`;
  return `${work.command} ${work.text}${part}`;
}

async function allMetrics(entries: ImageEntry[], ofMount: Family[] = []): Promise<string> {
  return prometheusText([
    ...ofMount,
    ...(await imageMetrics(entries)),
    ...(await attachmentMetrics(entries)),
  ]);
}

/** All images, whatever is wrong with them, except those that have just disappeared. */
async function everyEntry(catalog: Catalog): Promise<ImageEntry[]> {
  const found = await Promise.all(
    (await catalog.names()).map(async (name) => catalog.find(name).catch(() => null)),
  );
  return found.filter((it) => it !== null).map(({ entry }) => entry);
}

async function soundEntries(catalog: Catalog): Promise<ImageEntry[]> {
  const entries = await everyEntry(catalog);
  const sound = await Promise.all(
    entries.map(async (entry) => (await entry.state()).state === 'ok'),
  );
  return entries.filter((_, at) => sound[at]);
}

function oneWord(text: string, usage: string): string {
  return wordsOf(text, 1, 1, usage)[0] ?? '';
}

function now(text: string): void {
  const word = oneWord(text, '"now"');
  if (word !== 'now') {
    throw new PcowError('PCOW_INVALID', `write "now", not ${JSON.stringify(word)}`);
  }
}

function bytesIn(word: string): number {
  if (!/^\d{1,15}$/.test(word)) {
    throw new PcowError(
      'PCOW_INVALID',
      `the size must be a number of bytes, not ${JSON.stringify(word)}`,
    );
  }
  return Number(word);
}

/** "write NAME …: a b c": what the file does, and its possible arguments. */
async function usage(
  entry: ImageEntry,
  text: string,
  select: (entry: ImageEntry) => Promise<string[]>,
): Promise<string> {
  const names = await select(entry);
  return `${text} ${names.length === 0 ? '(none)' : names.join(' ')}\n`;
}

async function all(entry: ImageEntry): Promise<string[]> {
  const { image } = await entry.view();
  return image.snapshotNames();
}

async function baseName(entry: ImageEntry): Promise<string[]> {
  const { base } = (await entry.view()).image.info();
  return base ? [base.snapshot === null ? base.path : `${base.path}@${base.snapshot}`] : [];
}

async function newest(entry: ImageEntry): Promise<string[]> {
  return (await all(entry)).slice(-1);
}

async function current(entry: ImageEntry): Promise<string[]> {
  const { image } = await entry.view();
  return image
    .snapshots({ countData: false })
    .filter((snapshot) => snapshot.current)
    .map(({ name }) => name);
}
