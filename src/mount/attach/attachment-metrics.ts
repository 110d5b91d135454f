/**
 * The part of `metrics` about attached processes, from the reports of their monitors. A report may
 * contain anything: nothing in it is trusted.
 */
import { attachmentStatus } from '../../attach/attachment-status.js';
import { type Family, histogramSamples, type Sample } from '../control/prometheus.js';
import type { ImageEntry } from '../images/image-entry.js';

interface Figure {
  /** The name in the report. */
  field: string;
  name: string;
  type: 'gauge' | 'counter';
  help: string;
  /** How many of the report's units make one of Prometheus's; default: 1. */
  perUnit?: number;
}

const FIGURES: Figure[] = [
  counter('copiedBytes', 'pcow_copied_bytes_total', 'Bytes copied from lower layers.'),
  gauge('cleanCacheBytes', 'pcow_clean_cache_bytes', 'Resident clean copies of lower blocks.'),
  counter(
    'cleanCacheDroppedBytes',
    'pcow_clean_cache_dropped_bytes_total',
    'Clean copies dropped for the budget.',
  ),
  gauge(
    'sharedBytes',
    'pcow_shared_bytes',
    'Memory of the clean store that the process has mapped.',
  ),
  gauge(
    'ownBytes',
    'pcow_own_bytes',
    "Memory of the image's own blocks that the process has mapped.",
  ),
  gauge('mappings', 'pcow_mappings', 'Memory mappings in use (an upper estimate).'),
  counter('promotions', 'pcow_promotions_total', 'Fragmented chunks that were completed.'),
  counter(
    'demotions',
    'pcow_demotions_total',
    'Windows of 2 MiB of the image file whose pages were made small.',
  ),
  counter('stalls', 'pcow_stalls_total', 'Faults that waited for the disk (full or failing).'),
  gauge('stalled', 'pcow_stalled', 'Faults that wait for the disk now (full or failing).'),
  gauge('fetching', 'pcow_fetching', 'Faults that wait for remote bytes now.'),
  counter('liveSnapshots', 'pcow_live_snapshots_total', 'Snapshots of the running guest.'),
  {
    ...gauge(
      'lastFreezeNs',
      'pcow_last_freeze_seconds',
      'How long the last snapshot froze the memory.',
    ),
    perUnit: 1e9,
  },
  counter('monitorSyncs', 'pcow_monitor_syncs_total', 'Flushes of the guest.'),
];

interface Report {
  image: string;
  figures: Record<string, unknown>;
}

/**
 * One family for each figure. Images that are not attached, or whose monitor is too busy to answer,
 * have no sample.
 */
export async function attachmentMetrics(entries: ImageEntry[]): Promise<Family[]> {
  const reports = (await Promise.all(entries.map(reportOf))).flat();
  return [faultSeconds(reports), ...FIGURES.map((figure) => familyOf(figure, reports))].filter(
    ({ samples }) => samples.length > 0,
  );
}

async function reportOf({ name, monitor }: ImageEntry): Promise<Report[]> {
  if (monitor === null) return [];
  const figures = (await attachmentStatus(monitor)).monitor;
  return isRecord(figures) ? [{ image: name, figures }] : [];
}

/** What all of them together have mapped of the clean store, in bytes. */
export async function sharedBytes(entries: ImageEntry[]): Promise<number> {
  const reports = (await Promise.all(entries.map(reportOf))).flat();
  return reports
    .map(({ figures }) => (typeof figures.sharedBytes === 'number' ? figures.sharedBytes : 0))
    .reduce((sum, bytes) => sum + bytes, 0);
}

function familyOf({ field, name, type, help, perUnit = 1 }: Figure, reports: Report[]): Family {
  const samples = reports.flatMap(({ image, figures }): Sample[] => {
    const value = figures[field];
    return typeof value === 'number' ? [{ labels: { image }, value: value / perUnit }] : [];
  });
  return { name, type, help, samples };
}

/**
 * The monitor counts faults by kind, in buckets: bucket i counts those of less than 2^i
 * microseconds, the last bucket the rest.
 */
function faultSeconds(reports: Report[]): Family {
  const samples = reports.flatMap(({ image, figures: { faults } }) =>
    Object.entries(isRecord(faults) ? faults : {}).flatMap(([kind, fault]) => {
      const { buckets, sumNs } = isRecord(fault) ? fault : {};
      if (!isCounts(buckets) || typeof sumNs !== 'number') return [];
      const bounds = buckets.slice(1).map((_, at) => 2 ** at / 1e6);
      return histogramSamples({ image, kind: labelOf(kind) }, bounds, buckets, sumNs / 1e9);
    }),
  );
  return {
    name: 'pcow_fault_seconds',
    type: 'histogram',
    help: "Time from a page fault's event to its answer.",
    samples,
  };
}

/** `copyOnWrite` in the report is `copy_on_write` in a label, as Prometheus's names are written. */
function labelOf(kind: string): string {
  return kind.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCounts(value: unknown): value is number[] {
  return (
    Array.isArray(value) && value.length > 1 && value.every((count) => typeof count === 'number')
  );
}

function gauge(field: string, name: string, help: string): Figure {
  return { field, name, type: 'gauge', help };
}

function counter(field: string, name: string, help: string): Figure {
  return { field, name, type: 'counter', help };
}
