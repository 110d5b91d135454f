/** The table of `pcow top`. */
import {
  FAULT_KINDS,
  type Activity,
  type FaultKind,
  type ImageActivity,
  type Look,
  type StoreActivity,
} from '../../src/client/activity.js';
import { formatSize } from '../../src/images/sizes.js';
import { table } from './table.js';
import { fitted, type FittingColumn, truncated } from './terminal-width.js';

const right = (title: string, dispensable: number): FittingColumn => ({
  title,
  align: 'right',
  dispensable,
});
const COLUMNS: FittingColumn[] = [
  { title: 'image' },
  { title: 'state' },
  { title: 'process', dispensable: 3 },
  right('expand/s', 4),
  right('cow/s', 5),
  right('clean/s', 8),
  right('share/s', 9),
  right('map/s', 10),
  right('p99', 6),
  right('copied', 7),
  right('own', 12),
  right('shared', 13),
  right('private', 14),
  right('mappings', 15),
  right('stalls', 2),
  right('snapshots', 11),
];

/** The cells from expand/s to stalls, for images without a monitor, or with a busy one. */
const NO_FIGURES: string[] = new Array<string>(12).fill('');

/**
 * Faults per second are since the previous look; for a new process, since it attached. Columns that
 * do not fit `width` characters are dropped, the less important ones first.
 */
export function topTable(now: Look, before: Look | null, width = Infinity): string {
  const rows = now.images.flatMap((image): string[][] => {
    const [first, ...others] = image.attached;
    const earlier = before?.images.find(({ name }) => name === image.name);
    const figures = (it: Activity) => activityCells(it, rateOf(it, now, earlier, before));
    const snapshots = String(image.snapshots);
    if (first === undefined) {
      return [[image.name, stateText(image), '', ...NO_FIGURES, snapshots]];
    }
    return [
      [image.name, attachedText(first), ...figures(first), snapshots],
      ...others.map((it) => ['', attachedText(it), ...figures(it), '']),
    ];
  });
  if (now.images.length === 0) return 'no images';
  const fitting = fitted(COLUMNS, rows, width);
  const text = table(fitting.columns, fitting.rows);
  return now.cleanStore === null ? text : `${text}\n${truncated(storeText(now.cleanStore), width)}`;
}

function storeText({ budget, bytes, shared, saved }: StoreActivity): string {
  const [most, held, mapped, less] = [budget, bytes, shared, saved].map(formatSize);
  return `clean store: ${held} of at most ${most}, mapped as ${mapped}, which saves ${less}`;
}

function stateText({ state, open }: ImageActivity): string {
  if (state !== 'ok') return state;
  return open > 0 ? 'open' : 'idle';
}

function attachedText({ writable, monitor }: Activity): string {
  if (monitor === null) return 'busy';
  if (monitor.stalledNow > 0) return 'stalled: disk full';
  if (monitor.fetchingNow > 0) return 'waits for bytes';
  return writable ? 'attached' : 'attached to read';
}

function rateOf(
  process: Activity,
  now: Look,
  earlier: ImageActivity | undefined,
  before: Look | null,
): (kind: FaultKind) => string {
  const same = earlier?.attached.find(
    ({ pid, since, monitor }) =>
      pid === process.pid && since.getTime() === process.since.getTime() && monitor !== null,
  );
  const from = same === undefined || before === null ? process.since : before.time;
  const seconds = Math.max((now.time.getTime() - from.getTime()) / 1000, 0.001);
  return (kind) => {
    const count = process.monitor?.faults[kind].count ?? 0;
    return String(Math.round((count - (same?.monitor?.faults[kind].count ?? 0)) / seconds));
  };
}

function activityCells(process: Activity, rate: (kind: FaultKind) => string): string[] {
  const name = `${process.pid} ${process.command}`;
  const { monitor } = process;
  if (monitor === null) {
    return [name, ...NO_FIGURES];
  }
  return [
    name,
    ...FAULT_KINDS.map(rate),
    slowest(monitor.faults),
    formatSize(monitor.copiedBytes),
    formatSize(monitor.ownBytes),
    formatSize(monitor.sharedBytes),
    formatSize(monitor.cleanCacheBytes),
    String(monitor.mappings),
    String(monitor.stalls),
  ];
}

/** The 99th percentile of the slowest kind of fault. */
function slowest(faults: Record<FaultKind, { count: number; p99Us: number }>): string {
  const microseconds = Math.max(
    ...FAULT_KINDS.map((kind) => (faults[kind].count > 0 ? faults[kind].p99Us : 0)),
  );
  return microseconds < 1000 ? `${microseconds} µs` : `${Math.round(microseconds / 1000)} ms`;
}
