/** Figures as Prometheus reads them (text format 0.0.4): `.pcow/NAME/metrics` for an image, `.pcow/metrics` for all. */
import { statfs } from 'node:fs/promises';

import type { ImageInfo } from '../../engine/index.js';
import type { ImageState } from '../../image-states.js';
import type { ImageEntry } from '../images/image-entry.js';
import type { Traffic } from '../images/traffic.js';

/** An image whose state is 'ok'. */
interface Sample {
  entry: ImageEntry;
  info: ImageInfo;
  traffic: Traffic;
  /** Of the disk that its file is on; null: unknown. */
  disk: { free: number; size: number } | null;
}

/** Any other is in `all` only. */
interface Samples {
  all: { name: string; state: ImageState }[];
  sound: Sample[];
}

interface Family {
  name: string;
  type: 'gauge' | 'counter';
  help: string;
  /** Value by further labels ('' or 'name="value"'). */
  values(sample: Sample): [labels: string, value: number][];
}

const FAMILIES: Family[] = [
  gauge('pcow_size_bytes', 'Size of the image as a guest sees it.', ({ info }) => info.size),
  gauge('pcow_disk_use_bytes', 'What the image file takes on its disk.', ({ info }) => info.diskUse),
  {
    name: 'pcow_disk_free_bytes',
    type: 'gauge',
    help: 'Free space on the disk of the image file, for its owner.',
    values: ({ disk }) => (disk ? [['', disk.free]] : []),
  },
  {
    name: 'pcow_disk_size_bytes',
    type: 'gauge',
    help: 'Size of that disk.',
    values: ({ disk }) => (disk ? [['', disk.size]] : []),
  },
  gauge('pcow_snapshots', 'Snapshots of the image.', ({ info }) => info.snapshots),
  gauge('pcow_chain_layers', 'Layers that a read may fall through.', ({ info }) => info.chain.length),
  {
    name: 'pcow_open_files',
    type: 'gauge',
    help: 'Open flat files.',
    values: ({ entry }) => {
      const writing = [...entry.uses].filter(({ writable }) => writable).length;
      return [
        ['mode="write"', writing],
        ['mode="read"', entry.uses.size - writing],
      ];
    },
  },
  counter('pcow_reads_total', 'Reads of the flat file.', ({ traffic }) => traffic.reads),
  counter('pcow_read_bytes_total', 'Bytes read from the flat file.', ({ traffic }) => traffic.readBytes),
  counter('pcow_writes_total', 'Writes to the flat file.', ({ traffic }) => traffic.writes),
  counter('pcow_written_bytes_total', 'Bytes written to the flat file.', ({ traffic }) => traffic.writtenBytes),
  counter('pcow_syncs_total', 'Syncs asked for (fsync, msync).', ({ traffic }) => traffic.syncs),
  counter('pcow_discards_total', 'Ranges discarded.', ({ traffic }) => traffic.discards),
  {
    name: 'pcow_commands_total',
    type: 'counter',
    help: 'Commands done by control files.',
    values: ({ entry }) => [...entry.done].map(([command, count]) => [`command="${command}"`, count]),
  },
  counter('pcow_stops_total', 'Times that processes were stopped for a snapshot.', ({ entry }) => entry.stops.count),
  counter('pcow_stop_seconds_total', 'Time that they were stopped.', ({ entry }) => entry.stops.seconds),
];

/** Of all these images, whatever is wrong with them. */
export async function metricsOf(entries: ImageEntry[]): Promise<string> {
  const { all, sound } = await samplesOf(entries);
  const states = all.map(({ name, state }) => `${STATE}{${imageLabel(name)},state="${escaped(state)}"} 1\n`);
  const families = FAMILIES.map((family) => {
    const lines = sound.flatMap((sample) =>
      family.values(sample).map(([labels, value]) => {
        const image = imageLabel(sample.entry.name);
        return `${family.name}{${labels === '' ? image : `${image},${labels}`}} ${value}\n`;
      }),
    );
    return head(family) + lines.join('');
  });
  const stateHead = head({ name: STATE, type: 'gauge', help: 'Always 1; the state is "ok", or says what is wrong.' });
  return [stateHead, ...states, ...families].join('');
}

const STATE = 'pcow_image_state';

function head({ name, type, help }: Pick<Family, 'name' | 'type' | 'help'>): string {
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`;
}

async function samplesOf(entries: ImageEntry[]): Promise<Samples> {
  const samples: Samples = { all: [], sound: [] };
  await Promise.all(
    entries.map(async (entry) => {
      const disk = await diskOf(entry.file);
      const { state } = await entry.state();
      samples.all.push({ name: entry.name, state });
      if (state !== 'ok') return;
      const { image } = await entry.view();
      samples.sound.push({ entry, info: image.info(), traffic: entry.traffic(), disk });
    }),
  );
  samples.all.sort((a, b) => (a.name < b.name ? -1 : 1));
  samples.sound.sort((a, b) => (a.entry.name < b.entry.name ? -1 : 1));
  return samples;
}

async function diskOf(file: string): Promise<Sample['disk']> {
  try {
    const { bsize, bavail, blocks } = await statfs(file);
    return { free: bavail * bsize, size: blocks * bsize };
  } catch {
    return null; // the image file has just gone
  }
}

export function imageLabel(name: string): string {
  return `image="${escaped(name)}"`;
}

function gauge(name: string, help: string, value: (sample: Sample) => number): Family {
  return { name, type: 'gauge', help, values: (sample) => [['', value(sample)]] };
}

function counter(name: string, help: string, value: (sample: Sample) => number): Family {
  return { name, type: 'counter', help, values: (sample) => [['', value(sample)]] };
}

/** A label's value: backslash, quote and newline are the three that the format escapes. */
function escaped(text: string): string {
  return text.replace(/[\\"\n]/g, (character) => (character === '\n' ? '\\n' : `\\${character}`));
}
