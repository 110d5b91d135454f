/** Counts requests on flat files. */
import type { Traffic } from '../../engine/native-operations.js';

export type { Traffic };

export function noTraffic(): Traffic {
  return { reads: 0, readBytes: 0, writes: 0, writtenBytes: 0, syncs: 0, discards: 0 };
}

export function sumOfTraffic(parts: Traffic[]): Traffic {
  const sum = noTraffic();
  for (const part of parts) {
    for (const key of Object.keys(sum) as (keyof Traffic)[]) {
      sum[key] += part[key];
    }
  }
  return sum;
}
