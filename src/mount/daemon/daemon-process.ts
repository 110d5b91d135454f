/**
 * The program of a mount's process (daemon.ts): DIRECTORY MOUNTPOINT OPTIONS LOG. OPTIONS is JSON,
 * LOG may be empty.
 */
import { PcowError } from '../../engine/index.js';
import { endOnSignals, type Readiness, reopenLogOnHangup } from './daemon.js';
import { errnoOf, sentenceOf } from '../failure.js';
import { mountDirectory } from '../mount.js';
import type { MountOptions } from '../options.js';

const [directory = '', mountpoint = '', options = '{}', logFile = ''] = process.argv.slice(2);
process.title = `pcow mount ${directory} ${mountpoint}`;

function tell(readiness: Readiness): Promise<void> {
  return new Promise((resolve) => {
    // The process that started this one may have ended; the mount continues nevertheless.
    process.send?.(readiness, undefined, undefined, () => {
      resolve();
    });
  });
}

try {
  const mount = await mountDirectory(directory, mountpoint, JSON.parse(options) as MountOptions);
  endOnSignals(mount, ['SIGINT', 'SIGTERM']);
  reopenLogOnHangup(logFile);
  await tell({ ready: true });
  if (process.connected) {
    process.disconnect();
  }
  const failures = await mount.ended;
  process.exit(failures.length === 0 ? 0 : 1);
} catch (error) {
  const code = error instanceof PcowError ? error.code : 'PCOW_MOUNT';
  await tell({ ready: false, code, errno: errnoOf(error), message: sentenceOf(error) });
  process.exit(1);
}
