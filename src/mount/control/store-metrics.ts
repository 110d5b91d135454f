/** The part of the mount's `metrics` about its clean store. */
import type { StoreFigures } from '../../engine/attach-server.js';
import type { Family } from './prometheus.js';

/** None if the mount has no store. */
export function storeMetrics(store: StoreFigures | null): Family[] {
  if (store === null) return [];
  return [
    gauge(
      'pcow_clean_store_bytes',
      'Memory in use for what guests of one base share.',
      store.bytes,
    ),
    gauge(
      'pcow_clean_store_budget_bytes',
      'The most memory that guests of one base share.',
      store.budget,
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
