/** The location and the settings of a mount, which its parts share. */
import path from 'node:path';

import type { OpenImages } from './images/open-images.js';
import type { MountSettings } from './options.js';
import type { Watchdog } from './daemon/watchdog.js';

export interface Place {
  /** The image directory, as a real path. */
  readonly directory: string;
  /** As a real path. */
  readonly mountpoint: string;
  /** "MAJOR:MINOR" as in /proc/self/mountinfo; empty until mounted. */
  device: string;
  /** The socket to which monitors connect; empty if the mount serves none. */
  socket: string;
  /** Why the mount serves no monitors: a sentence, or null. */
  noMonitors: string | null;
  readonly settings: MountSettings;
  readonly openImages: OpenImages;
  /** If this process is killed, the watchdog does what it still had to do. */
  readonly watchdog: Watchdog;
}

/**
 * The path of an image's flat file, for helper processes and for messages: this process must never
 * access it.
 */
export function flatFilePath(place: Place, image: string): string {
  return path.join(place.mountpoint, image);
}
