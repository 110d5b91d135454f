/** Where a mount is and how it was asked to be: what its parts share. */
import path from 'node:path';

import type { OpenImages } from './images/open-images.js';
import type { MountSettings } from './options.js';
import type { Watchdog } from './daemon/watchdog.js';

export interface Place {
  /** The image directory, as a real path. */
  readonly directory: string;
  /** As a real path. */
  readonly mountpoint: string;
  /** "MAJOR:MINOR" as /proc/self/mountinfo has it; empty until mounted. */
  device: string;
  /** Where monitors connect; empty where the mount serves none. */
  socket: string;
  /** Why it serves none: a sentence, or null. */
  noMonitors: string | null;
  readonly settings: MountSettings;
  readonly openImages: OpenImages;
  /** Does what this process still had to do, if it is killed. */
  readonly watchdog: Watchdog;
}

/** The path of an image's flat file, for helper processes and for messages: this process must never touch it. */
export function flatFilePath(place: Place, image: string): string {
  return path.join(place.mountpoint, image);
}
