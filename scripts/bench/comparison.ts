/** One comparison: what it measures, on which systems, and how its results are drawn. */
import type { Ledger, Results } from './results.js';
import type { Stand } from './stand.js';

export interface Bench {
  stand: Stand;
  record: Ledger;
  short: boolean;
  say: (line: string) => void;
}

/**
 * Where the images and files of a comparison are. "memory" is tmpfs: a store is durable as far as
 * the medium goes as soon as it is made, as on persistent memory.
 */
export type Medium = 'disk' | 'memory';

export interface Comparison {
  name: string;
  medium: Medium;
  run: (bench: Bench) => Promise<void>;
  /** SVG pictures by their names. */
  plots: (results: Results) => Record<string, string>;
}

/** The systems in another order in each round, so that none is always first. */
export function rotated<T>(systems: readonly T[], round: number): T[] {
  const from = round % systems.length;
  return [...systems.slice(from), ...systems.slice(0, from)];
}

/** The latencies that the programs print: microseconds. */
export interface Latencies {
  p50: number;
  p99: number;
  longest: number;
  histogram: [number, number][];
}
