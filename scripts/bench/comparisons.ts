/** All comparisons, in the order of the document. */
import { boots } from './boot.js';
import type { Comparison } from './comparison.js';
import { density } from './density.js';
import { fuse } from './fuse.js';
import { guests, guestsInMemory } from './guests.js';
import { lazy } from './lazy.js';
import { mapping } from './mapping.js';
import { registry } from './registry.js';
import { snapshots } from './snapshots.js';
import { space } from './space.js';

export const comparisons: Comparison[] = [
  guests,
  guestsInMemory,
  boots,
  mapping,
  snapshots,
  fuse,
  space,
  density,
  registry,
  lazy,
];
