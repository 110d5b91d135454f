/**
 * The part of fuse-native's interface that the mount uses, and the wrapper between it and the
 * handlers.
 */
import { readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import { interceptions, onSessionEnd, requireFuse } from '../../engine/native-operations.js';
import { mountTable } from '../../images/mount-table.js';
import { errnoOf, sentenceOf } from '../failure.js';
import { debugLog } from '../log.js';

const debug = debugLog('operations');

export interface FuseOptions {
  timeout: false;
  fsname: string;
  subtype: string;
  allowOther: boolean;
  attrTimeout: string;
  entryTimeout: string;
}

interface NativeFuse {
  mount(callback: (error: Error | null) => void): void;
  unmount(callback: (error: Error | null) => void): void;
}

interface NativeFuseClass {
  new (mountpoint: string, operations: Operations, options: FuseOptions): NativeFuse;
  unmount(mountpoint: string, callback: (error: Error | null) => void): void;
}

/** Milliseconds between two checks whether a session has ended that does not report its end. */
const END_PAUSE = 100;

let loaded: NativeFuseClass | null = null;

/** Loads fuse-native so that the native operations are used for the process's first mount. */
function loadFuse(directory: string): NativeFuseClass {
  if (!loaded) {
    loaded = requireFuse(directory) as NativeFuseClass;
    // fuse-native's own function runs a shell. The mount ends sessions itself, and calls letGo()
    // when that has happened.
    loaded.unmount = (_mountpoint, callback) => {
      callback(null);
    };
  }
  return loaded;
}

/** A FUSE session of fuse-native. */
export class FuseSession {
  readonly #fuse: NativeFuse;
  readonly #mountpoint: string;
  #native = false;
  #ended: Promise<void> | null = null;

  constructor(directory: string, mountpoint: string, operations: Operations, options: FuseOptions) {
    const Fuse = loadFuse(directory);
    this.#mountpoint = mountpoint;
    this.#fuse = new Fuse(mountpoint, operations, options);
  }

  /**
   * Begins the session. Resolves with its device, "MAJOR:MINOR" in decimal; with null if it has
   * ended already.
   */
  async begin(): Promise<string | null> {
    const before = interceptions();
    // Only the first session has the native operations, and only they report its end.
    const nativeEnd =
      before === 0
        ? new Promise<void>((resolve) => {
            onSessionEnd(resolve);
          })
        : null;
    await new Promise<void>((resolve, reject) => {
      this.#fuse.mount((error) => {
        if (error) {
          reject(error);
        } else {
          resolve();
        }
      });
    });
    const device =
      (await mountTable()).findLast(({ mountpoint }) => mountpoint === this.#mountpoint)?.device ??
      null;
    this.#native = interceptions() > before;
    this.#ended =
      this.#native && nativeEnd
        ? nativeEnd
        : device === null
          ? Promise.resolve()
          : connectionGone(device);
    return device;
  }

  /** Whether bytes are served without JavaScript, which is so for the process's first mount. */
  get native(): boolean {
    return this.#native;
  }

  /** After begin(): resolves when the session has ended, whatever ended it. */
  get ended(): Promise<void> {
    return this.#ended ?? Promise.resolve();
  }

  /** After the end: the session no longer keeps this process alive. */
  letGo(): Promise<void> {
    return new Promise((resolve) => {
      this.#fuse.unmount(() => {
        resolve();
      });
    });
  }
}

/**
 * The kernel lists a connection as long as anything uses it, even after the mount was removed from
 * the directory tree.
 */
async function connectionGone(device: string): Promise<void> {
  const connections = '/sys/fs/fuse/connections';
  const own = device.split(':')[1] ?? '';
  for (;;) {
    const listed = await readdir(connections).catch((): string[] => []);
    if (!listed.includes(own) && !(await mountTable()).some((mount) => mount.device === device)) {
      return;
    }
    await sleep(END_PAUSE);
  }
}

/**
 * Every handler's last argument. `result` is 0, a negative errno, or the bytes that were read or
 * written.
 */
export type Answer = (result: number, ...values: unknown[]) => void;

export type Operations = Record<string, (...parameters: never[]) => void>;

/**
 * Makes a handler for fuse-native. Any failure in `work` becomes an errno: an exception that
 * escaped would end the process, and with it the mount. The result of `work` becomes the `values`
 * of the answer.
 */
export function guarded<Parameters extends unknown[], Result>(
  name: string,
  work: (...parameters: Parameters) => Promise<Result>,
  answerWith: (answer: Answer, result: Result) => void,
): (...parameters: never[]) => void {
  return (...all: unknown[]) => {
    const answer = all.pop() as Answer;
    const parameters = all as Parameters;
    Promise.resolve()
      .then(() => work(...parameters))
      .then(
        (result) => {
          debug('%s %s', name, String(parameters[0]));
          answerWith(answer, result);
        },
        (error: unknown) => {
          debug('%s %s: %s', name, String(parameters[0]), sentenceOf(error));
          answer(-errnoOf(error));
        },
      )
      .catch((error: unknown) => {
        debug('the answer to %s could not be given: %o', name, error);
      });
  };
}
