/** Figures as Prometheus reads them (text format 0.0.4): `.pcow/NAME/metrics` for an image, `.pcow/metrics` for all. */
import type { ImageInfo } from '../engine/index.js';
import type { ImageEntry } from './image-entry.js';
import type { Traffic } from './traffic.js';

interface Sample {
  entry: ImageEntry;
  info: ImageInfo;
  traffic: Traffic;
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

export async function metricsOf(entries: ImageEntry[]): Promise<string> {
  const samples = await Promise.all(
    entries.map(async (entry): Promise<Sample> => {
      const { image } = await entry.view();
      return { entry, info: image.info(), traffic: entry.traffic() };
    }),
  );
  return FAMILIES.map((family) => {
    const lines = samples.flatMap((sample) =>
      family.values(sample).map(([labels, value]) => {
        const image = imageLabel(sample.entry.name);
        return `${family.name}{${labels === '' ? image : `${image},${labels}`}} ${value}\n`;
      }),
    );
    return `# HELP ${family.name} ${family.help}\n# TYPE ${family.name} ${family.type}\n${lines.join('')}`;
  }).join('');
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
