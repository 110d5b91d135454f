/**
 * Metrics of images for Prometheus: `.pcow/NAME/metrics` for one image, `.pcow/metrics` for all.
 */
import { statfs } from 'node:fs/promises';

import type { ImageInfo } from '../../engine/index.js';
import type { FetchState } from '../../registry/fetcher.js';
import type { ImageState } from '../../images/image-states.js';
import type { ImageEntry } from '../images/image-entry.js';
import type { Traffic } from '../images/traffic.js';
import type { Family, Labels } from './prometheus.js';

/** An image whose state is 'ok'. */
interface SoundImage {
  entry: ImageEntry;
  info: ImageInfo;
  /** Bytes that a lazy image lacks; null: it is not lazy, or this cannot be read. */
  remote: number | null;
  traffic: Traffic;
  /** Of the disk with its file; null: unknown. */
  disk: { free: number; size: number } | null;
}

/** Images in any other state are in `all` only. */
interface Found {
  all: { name: string; state: ImageState }[];
  sound: SoundImage[];
}

interface Figure {
  name: string;
  type: 'gauge' | 'counter';
  help: string;
  /** The values, with their labels other than the image's. */
  values: (image: SoundImage) => [value: number, labels?: Labels][];
}

const FIGURES: Figure[] = [
  gauge('pcow_size_bytes', 'Size of the image as a guest sees it.', ({ info }) => info.size),
  gauge('pcow_disk_use_bytes', 'Disk space that the image file takes.', ({ info }) => info.diskUse),
  {
    name: 'pcow_disk_free_bytes',
    type: 'gauge',
    help: 'Free space on the disk of the image file, for users other than root.',
    values: ({ disk }) => (disk ? [[disk.free]] : []),
  },
  {
    name: 'pcow_disk_size_bytes',
    type: 'gauge',
    help: 'Size of the disk of the image file.',
    values: ({ disk }) => (disk ? [[disk.size]] : []),
  },
  {
    name: 'pcow_remote_bytes',
    type: 'gauge',
    help: 'Bytes of a lazy image that have not been fetched yet.',
    values: ({ remote }) => (remote === null ? [] : [[remote]]),
  },
  {
    name: 'pcow_fetched_bytes_total',
    type: 'counter',
    help: 'Bytes that were fetched from the registry of a lazy image.',
    values: ({ entry }) => fetched(entry, ({ fetchedBytes }) => fetchedBytes),
  },
  {
    name: 'pcow_given_back_bytes_total',
    type: 'counter',
    help: 'Bytes that a lazy image with a limit has given back.',
    values: ({ entry }) => fetched(entry, ({ givenBackBytes }) => givenBackBytes),
  },
  {
    name: 'pcow_fetch_requests_total',
    type: 'counter',
    help: 'Requests to the registry of a lazy image.',
    values: ({ entry }) => fetched(entry, ({ requests }) => requests),
  },
  {
    name: 'pcow_fetch_waiting_seconds',
    type: 'gauge',
    help: 'For how long a reader has waited for bytes of a lazy image; 0: none waits.',
    values: ({ entry }) => fetched(entry, ({ waiting }) => secondsSince(waiting?.since)),
  },
  gauge('pcow_snapshots', 'Snapshots of the image.', ({ info }) => info.snapshots),
  gauge(
    'pcow_chain_layers',
    'Layers that a read may fall through.',
    ({ info }) => info.chain.length,
  ),
  {
    name: 'pcow_open_files',
    type: 'gauge',
    help: 'Open flat files.',
    values: ({ entry }) => {
      const writing = [...entry.uses].filter(({ writable }) => writable).length;
      return [
        [writing, { mode: 'write' }],
        [entry.uses.size - writing, { mode: 'read' }],
      ];
    },
  },
  counter('pcow_reads_total', 'Reads of the flat file.', ({ traffic }) => traffic.reads),
  counter(
    'pcow_read_bytes_total',
    'Bytes read from the flat file.',
    ({ traffic }) => traffic.readBytes,
  ),
  counter('pcow_writes_total', 'Writes to the flat file.', ({ traffic }) => traffic.writes),
  counter(
    'pcow_written_bytes_total',
    'Bytes written to the flat file.',
    ({ traffic }) => traffic.writtenBytes,
  ),
  counter('pcow_syncs_total', 'Syncs requested (fsync, msync).', ({ traffic }) => traffic.syncs),
  counter('pcow_discards_total', 'Ranges discarded.', ({ traffic }) => traffic.discards),
  {
    name: 'pcow_commands_total',
    type: 'counter',
    help: 'Commands done through control files.',
    values: ({ entry }) => [...entry.done].map(([command, count]) => [count, { command }]),
  },
  counter(
    'pcow_stops_total',
    'Times that processes were stopped for a snapshot.',
    ({ entry }) => entry.stops.count,
  ),
  counter(
    'pcow_stop_seconds_total',
    'Time for which processes were stopped for a snapshot.',
    ({ entry }) => entry.stops.seconds,
  ),
];

/** For all these images, whatever is wrong with them. */
export async function imageMetrics(entries: ImageEntry[]): Promise<Family[]> {
  const { all, sound } = await lookAt(entries);
  const states: Family = {
    name: 'pcow_image_state',
    type: 'gauge',
    help: 'Always 1; the label "state" is "ok", or says what is wrong.',
    samples: all.map(({ name, state }) => ({ labels: { image: name, state }, value: 1 })),
  };
  const families = FIGURES.map(({ name, type, help, values }): Family => {
    const samples = sound.flatMap((image) =>
      values(image).map(([value, labels]) => ({
        labels: { image: image.entry.name, ...labels },
        value,
      })),
    );
    return { name, type, help, samples };
  });
  return [states, ...families];
}

async function lookAt(entries: ImageEntry[]): Promise<Found> {
  const found: Found = { all: [], sound: [] };
  await Promise.all(
    entries.map(async (entry) => {
      const disk = await diskOf(entry.file);
      const { state } = await entry.state();
      found.all.push({ name: entry.name, state });
      if (state !== 'ok') return;
      const { image } = await entry.view();
      const info = image.info();
      const remote = info.lazy ? await image.remoteBytes().catch(() => null) : null;
      found.sound.push({ entry, info, remote, traffic: entry.traffic(), disk });
    }),
  );
  found.all.sort((a, b) => (a.name < b.name ? -1 : 1));
  found.sound.sort((a, b) => (a.entry.name < b.entry.name ? -1 : 1));
  return found;
}

function fetched(entry: ImageEntry, figure: (state: FetchState) => number): [number][] {
  const { state } = entry.fetching;
  return state === null ? [] : [[figure(state)]];
}

function secondsSince(since: Date | undefined): number {
  return since === undefined ? 0 : (Date.now() - since.getTime()) / 1000;
}

async function diskOf(file: string): Promise<SoundImage['disk']> {
  try {
    const { bsize, bavail, blocks } = await statfs(file);
    return { free: bavail * bsize, size: blocks * bsize };
  } catch {
    return null; // the image file has just disappeared
  }
}

function gauge(name: string, help: string, value: (image: SoundImage) => number): Figure {
  return { name, type: 'gauge', help, values: (image) => [[value(image)]] };
}

function counter(name: string, help: string, value: (image: SoundImage) => number): Figure {
  return { name, type: 'counter', help, values: (image) => [[value(image)]] };
}
