/** The options of a mount. */
import { PcowError } from '../engine/index.js';
import { checkStoreSize } from '../images/sizes.js';

/** The options of a mount. */
export interface MountOptions {
  /**
   * Other users may use the mount as far as the permissions of the images allow. Default: only the
   * user who mounts.
   */
  allowOther?: boolean | undefined;
  /** No image is opened for writing, and every write fails with EROFS. */
  readOnly?: boolean | undefined;
  /**
   * Bases may be outside of the image directory. Default: an image with such a base is not shown.
   */
  allowOutsideBase?: boolean | undefined;
  /**
   * Whether a snapshot may stop the processes that have the flat file mapped. Default: yes. If not,
   * the snapshot fails with EBUSY.
   */
  stopMappers?: boolean | undefined;
  /** Snapshots get checksums, in the background after they were taken. Default: only on command. */
  checksums?: boolean | undefined;
  /**
   * The directory of the control files is listed. Default: it is not listed, but can be opened by
   * its name.
   */
  showControl?: boolean | undefined;
  /**
   * Each write is durable before it returns, as with mount(8)'s option sync. Default: after an
   * fsync.
   */
  sync?: boolean | undefined;
  /** No file of the mount can be executed, whatever the permissions of its image are. */
  noExec?: boolean | undefined;
  /**
   * Bytes of memory in which guests of one base share what they read of it: 64 MiB or more. Default:
   * 0, they do not share.
   */
  cleanStore?: number | undefined;
}

/** The options with their defaults. */
export interface MountSettings {
  allowOther: boolean;
  readOnly: boolean;
  allowOutsideBase: boolean;
  stopMappers: boolean;
  checksums: boolean;
  showControl: boolean;
  sync: boolean;
  noExec: boolean;
  cleanStore: number;
}

const DEFAULTS: MountSettings = {
  allowOther: false,
  readOnly: false,
  allowOutsideBase: false,
  stopMappers: true,
  checksums: false,
  showControl: false,
  sync: false,
  noExec: false,
  cleanStore: 0,
};

/** Rejects unknown options, so that a misspelled one is never ignored. */
export function settingsOf(options: MountOptions): MountSettings {
  const settings = { ...DEFAULTS };
  for (const [key, value] of Object.entries(options) as [string, unknown][]) {
    if (!isOption(key)) {
      const known = Object.keys(DEFAULTS);
      const meant = known.find((name) => name.toLowerCase() === key.toLowerCase());
      const hint =
        meant === undefined ? `known are ${known.join(', ')}` : `it should be "${meant}"`;
      throw new PcowError('PCOW_INVALID', `a mount has no option ${JSON.stringify(key)}: ${hint}`);
    }
    if (value === undefined) {
      continue;
    }
    if (key === 'cleanStore') {
      if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
        throw new PcowError(
          'PCOW_INVALID',
          'the mount option "cleanStore" must be a number of bytes',
        );
      }
      checkStoreSize(value);
      settings.cleanStore = value;
      continue;
    }
    if (typeof value !== 'boolean') {
      throw new PcowError('PCOW_INVALID', `the mount option "${key}" must be true or false`);
    }
    settings[key] = value;
  }
  return settings;
}

function isOption(key: string): key is keyof MountSettings {
  return key in DEFAULTS;
}
