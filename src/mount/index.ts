/** Mounting an image directory, in this process or by a daemon, and ending a mount. */
export { type DaemonOptions, endOnSignals, startDaemon } from './daemon/daemon.js';
export { type EndFailure, type EndFailures, type Mount, mountDirectory } from './mount.js';
export type { MountOptions } from './options.js';
export { tellReady } from './daemon/service-manager.js';
export { umount } from './daemon/umount.js';
