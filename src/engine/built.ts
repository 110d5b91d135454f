/**
 * The files that the builds put into the package, and how to build them. This module is
 * dist/src/engine/built.js, or a part of dist/cli/bundle/programs.cjs.
 */
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

export const ADDON = path.join(ROOT, 'native/build/Release/pcow.node');
export const MONITOR = path.join(ROOT, 'native/build/Release/libpcow-monitor.so');

/** The programs of a mount's processes. */
export const MOUNT_PROGRAM = path.join(ROOT, 'dist/src/mount/daemon/daemon-process.js');
export const WATCHDOG_PROGRAM = path.join(ROOT, 'dist/src/mount/daemon/watchdog-process.js');

/** For messages. It also helps if npm installed this package without running its scripts. */
export const HOW_TO_BUILD = `build it with “bash ${path.join(ROOT, 'scripts/native-build')}”`;
