/** What `status` and `metrics` of the mount say about its clean store. */
import type { StoreFigures } from '../../engine/attach-server.js';
import { sharedBytes } from '../attach/attachment-metrics.js';
import type { ImageEntry } from '../images/image-entry.js';
import type { Family } from './prometheus.js';

export interface StoreStatus extends StoreFigures {
  /** Bytes that all attached processes together have mapped of it. Busy ones do not count. */
  shared: number;
  /** How many bytes more they would need if each had a copy. */
  saved: number;
}

/** Null if the mount has no store. */
export async function storeStatus(
  store: StoreFigures | null,
  entries: ImageEntry[],
): Promise<StoreStatus | null> {
  if (store === null) return null;
  const shared = await sharedBytes(entries);
  return { ...store, shared, saved: Math.max(0, shared - store.bytes) };
}

/** None if the mount has no store. */
export function storeMetrics(store: StoreStatus | null): Family[] {
  if (store === null) return [];
  return [
    gauge('pcow_clean_store_bytes', 'What guests of one base share.', store.bytes),
    gauge(
      'pcow_clean_store_budget_bytes',
      'The most memory that guests of one base share.',
      store.budget,
    ),
    gauge(
      'pcow_clean_store_saved_bytes',
      'Memory that guests would need more if each had a copy.',
      store.saved,
    ),
    gauge('pcow_clean_store_processes', 'Attached processes that may share memory.', store.clients),
    {
      ...gauge(
        'pcow_clean_store_refused_total',
        'Parts of bases (512 KiB) for which there was no room: processes made copies of their own.',
        store.refused,
      ),
      type: 'counter',
    },
  ];
}

function gauge(name: string, help: string, value: number): Family {
  return { name, type: 'gauge', help, samples: [{ labels: {}, value }] };
}
