/**
 * What IMAGE, IMAGE@SNAPSHOT and NEW on a command line stand for: src/images/find-image.ts, with a
 * message if a mount takes long to answer.
 */
import * as images from '../src/images/find-image.js';
import { sayThatItWaits } from './mounts-must-answer.js';
import { warn } from './output/errors.js';

export { flatFile, type ImageTarget, type Target } from '../src/images/find-image.js';

/** Prints this message. */
export const whileWaiting = {
  onWait: sayThatItWaits,
  onContinues(image: string): void {
    warn(
      'pcow',
      `${image}: this can't be stopped, and continues in the mount; Ctrl-C again stops waiting for it`,
    );
  },
};

export function findImage(given: string): Promise<images.ImageTarget> {
  return images.findImage(given, whileWaiting);
}

export function findTarget(given: string): Promise<images.Target> {
  return images.findTarget(given, whileWaiting);
}

export function findSnapshotTarget(given: string): Promise<images.SnapshotTarget> {
  return images.findSnapshotTarget(given, whileWaiting);
}

export function newImage(given: string): Promise<images.ImageTarget> {
  return images.newImage(given, whileWaiting);
}

export function imageAsNamed(given: string): Promise<images.ImageTarget> {
  return images.imageAsNamed(given, whileWaiting);
}

export function newFile(given: string): Promise<string> {
  return images.newFile(given, whileWaiting);
}

export function findDirectory(given: string): Promise<images.ImageDirectory> {
  return images.findDirectory(given, whileWaiting);
}
