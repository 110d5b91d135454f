/**
 * Pcow as a library: images, and mounts of image directories. docs/library.md shows how to use it.
 *
 * Sizes, offsets and lengths are bytes. Everything that fails throws, or rejects with, a {@link
 * PcowError}.
 *
 * @module pcow
 */
export { checkImage } from './engine/check.js';
export { type Dependant, dependants } from './engine/dependants.js';
export {
  isPcowError,
  PcowError,
  type PcowErrorCode,
  type PcowErrorOptions,
  type RemoteBlock,
} from './engine/errors.js';
export { Image, snapshotTogether } from './engine/image.js';
export {
  type DirectoryRecovery,
  recoverDirectory,
  recoverImage,
  type Recovery,
} from './engine/recovery.js';
export type * from './engine/types.js';
export {
  findDirectory,
  findImage,
  findSnapshotTarget,
  findTarget,
  type ImageDirectory,
  type ImageTarget,
  newFile,
  newImage,
  type SnapshotTarget,
  type Target,
} from './images/find-image.js';
export type { AskOptions } from './images/mount-answers.js';
export { mountsOfDirectory, type PcowMount, pcowMounts } from './images/mount-table.js';
export {
  addChecksums,
  type Commit,
  commitImage,
  compactImage,
  deleteSnapshot,
  flattenImage,
  orderOfRemoval,
  rebaseImage,
  rebaseUnsafely,
  removeChecksums,
  removeImage,
  renameImage,
  renameSnapshot,
  resizeImage,
  rollbackImage,
  snapshotImages,
} from './client/change-image.js';
export { type PushedTrace, pushTraceOf } from './client/push-trace.js';
export {
  type LazyImage,
  lazyImagesOf,
  prefetchImage,
  type PrefetchOptions,
} from './client/prefetch.js';
export {
  type Activity,
  type FaultFigures,
  type FaultKind,
  type ImageActivity,
  type Look,
  lookAt,
  type StoreActivity,
} from './client/activity.js';
export type { WorkOptions } from './client/control.js';
export { type ImageFileState, type Reception, receptionOf, stateOf } from './client/image-state.js';
export { type ImageList, type ListedImage, listImages } from './client/list-images.js';
export { makeImage, type MakeOptions } from './client/make-image.js';
export { type MonitorOptions, spawnMonitored } from './client/monitored-command.js';
export type { MountedStatus, ToldError } from './client/mount-status.js';
export { type MountedBase, MountedImage, snapshotMountedTogether } from './client/mounted-image.js';
export { compareContents, type Comparison } from './convert/compare.js';
export type { Contents, Range } from './convert/contents.js';
export {
  type Conversion,
  type Converted,
  convertIntoFile,
  convertIntoImage,
  type ConvertOptions,
  convertToBytes,
  convertToFile,
  convertToImage,
} from './convert/convert.js';
export { measure, type Measure } from './convert/measure.js';
export { formatOf, openContents } from './convert/open-contents.js';
export { backingsFor } from './guest/backings.js';
export { libvirtElements, type LibvirtRequest } from './guest/libvirt-elements.js';
export {
  type Backing,
  type Device,
  type QemuOptions,
  qemuOptions,
  type QemuRequest,
} from './guest/qemu-options.js';
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
  abandonPulling,
  loginToRegistry,
  logoutOfRegistry,
  pullImage,
  type Pulled,
  type PullOptions,
  pushImage,
  type Pushed,
  type PushOptions,
  type RegistryLogin,
  type RegistryOptions,
} from './registry/index.js';
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
