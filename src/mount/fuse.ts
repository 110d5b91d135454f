/** The part of fuse-native's interface that the mount uses, and the guard between it and the handlers. */
import { requireFuse } from '../engine/native-operations.js';
import { errnoOf, sentenceOf } from './failure.js';
import { debugLog } from './log.js';

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

/** A FUSE session of fuse-native's. */
export class FuseSession {
  readonly #fuse: NativeFuse;

  /** Loads fuse-native so that the native operations take hold. */
  constructor(directory: string, mountpoint: string, operations: Operations, options: FuseOptions) {
    const Fuse = requireFuse(directory) as NativeFuseClass;
    // Its own runs a shell. The mount ends sessions itself, and letGo() is called when that has happened.
    Fuse.unmount = (_mountpoint, callback) => {
      callback(null);
    };
    this.#fuse = new Fuse(mountpoint, operations, options);
  }

  /** Resolves when the kernel has begun the session. */
  begin(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#fuse.mount((error) => {
        if (error) {
          reject(error);
        } else {
          resolve();
        }
      });
    });
  }

  /** After the session's end: it no longer keeps this process alive. */
  letGo(): Promise<void> {
    return new Promise((resolve) => {
      this.#fuse.unmount(() => {
        resolve();
      });
    });
  }
}

/** Every handler's last argument. `result` is 0, a negative errno, or the bytes that were read or written. */
export type Answer = (result: number, ...values: unknown[]) => void;

export type Operations = Record<string, (...parameters: never[]) => void>;

/**
 * A handler as fuse-native wants it. Whatever goes wrong in `work` becomes an errno: an exception that got out would end the process,
 * and with it the mount. `values` of the answer are what `work` returns.
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
