/**
 * Pcow as a library: images, and mounts of image directories. docs/library.md shows how to use it.
 *
 * Sizes, offsets and lengths are bytes. Everything that fails throws, or rejects with, a {@link PcowError}.
 *
 * @module pcow
 */
export { checkImage } from './engine/check.js';
export { type Dependant, dependants } from './engine/dependants.js';
export { isPcowError, PcowError, type PcowErrorCode, type PcowErrorOptions } from './engine/errors.js';
export { Image, snapshotTogether } from './engine/image.js';
export type * from './engine/types.js';
export {
  type DaemonOptions,
  type EndFailure,
  type EndFailures,
  type Mount,
  mountDirectory as mount,
  type MountOptions,
  startDaemon,
  umount,
} from './mount/index.js';
export {
  abandonReceiving,
  exportImage,
  type Imported,
  importImage,
  receive,
  type Received,
  type ReceiveOptions,
  resumeSending,
  resumeToken,
  send,
  type SendOptions,
} from './stream/index.js';
export type { MountedStatus, ToldError } from './client/control.js';
export { type MountedBase, MountedImage, snapshotMountedTogether } from './client/mounted-image.js';
export { type MonitorOptions, spawnMonitored } from './client/monitored-command.js';
export { mountsOfDirectory, type PcowMount, pcowMounts } from './images/mount-table.js';
