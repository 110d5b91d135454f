/** Starts the process of a mount, and handles its signals and unexpected errors. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type FileHandle, open, realpath } from 'node:fs/promises';
import path from 'node:path';

import { MOUNT_PROGRAM } from '../../engine/built.js';
import { logTo } from '../../engine/daemon.js';
import { PcowError, type PcowErrorCode } from '../../engine/index.js';
import { sentenceOf } from '../failure.js';
import { log } from '../log.js';
import type { Mount } from '../mount.js';
import { mountError } from './mountpoint.js';
import { type MountOptions, settingsOf } from '../options.js';
import { tellStopping } from './service-manager.js';

/** For startDaemon. */
export interface DaemonOptions extends MountOptions {
  /**
   * A file to which the daemon appends its log, and which it opens again at SIGHUP. Default: no
   * log.
   */
  log?: string | undefined;
}

/** The one message that the daemon sends over IPC. */
export type Readiness =
  { ready: true } | { ready: false; code: PcowErrorCode; errno: number; message: string };

/**
 * Starts a process that mounts a directory and outlives this one. Resolves when the mount is ready,
 * with its pid.
 */
export async function startDaemon(
  directory: string,
  mountpoint: string,
  { log: logFile, ...options }: DaemonOptions = {},
): Promise<number> {
  const settings = settingsOf(options);
  const output = logFile === undefined ? null : await openLog(logFile);
  try {
    const stream = output?.handle.fd ?? 'ignore';
    const child = spawn(
      process.execPath,
      [
        MOUNT_PROGRAM,
        path.resolve(directory),
        path.resolve(mountpoint),
        JSON.stringify(settings),
        output?.file ?? '',
      ],
      { detached: true, cwd: '/', stdio: ['ignore', stream, stream, 'ipc'] },
    );
    const end = once(child, 'exit').then(([status, signal]) => {
      throw mountError(
        `the mount of ${directory} ended before it was ready (${String(signal ?? status)}): ` +
          'mount with --foreground to see why',
      );
    });
    end.catch(() => undefined);
    const said = once(child, 'message').catch((cause: unknown) => {
      throw mountError(
        `the process of the mount could not be started: ${sentenceOf(cause)}`,
        cause,
      );
    });
    const [answer] = (await Promise.race([said, end])) as [Readiness];
    if (!answer.ready) {
      throw new PcowError(answer.code, answer.message, { errno: answer.errno });
    }
    if (child.connected) {
      child.disconnect();
    }
    child.unref();
    return child.pid ?? 0;
  } finally {
    await output?.handle.close();
  }
}

/** `file`: a path that the daemon can open again from its own working directory. */
async function openLog(given: string): Promise<{ handle: FileHandle; file: string }> {
  try {
    const directory = await realpath(path.dirname(path.resolve(given)));
    const file = path.join(directory, path.basename(given));
    return { handle: await open(file, 'a', 0o640), file };
  } catch (cause) {
    throw mountError(`the log file ${given} can't be written: ${sentenceOf(cause)}`, cause);
  }
}

/**
 * Signals that end a mount in the foreground. The terminal sends the last one when it is closed.
 */
const ENDS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** A daemon has no terminal: SIGHUP means that the log file has been renamed. */
export function reopenLogOnHangup(file: string): void {
  process.on('SIGHUP', () => {
    if (file === '') {
      return;
    }
    try {
      logTo(file);
      log('SIGHUP: opened the log again');
    } catch (error) {
      log(sentenceOf(error));
    }
  });
}

/**
 * Makes signals end the mount. Keeps the process alive after unexpected exceptions, because other
 * images must not suffer from them. If files are open, the mount is removed from the directory
 * tree, and ends when no process needs its open files any more. Guests under the monitor do not
 * need them (hand-over.ts).
 */
export function endOnSignals(mount: Mount, signals: readonly NodeJS.Signals[] = ENDS): void {
  let ending = false;
  const end = (signal: NodeJS.Signals) => {
    log(`${signal}: ending the mount on ${mount.mountpoint}`);
    if (ending) {
      return;
    }
    ending = true;
    tellStopping();
    mount
      .unmount()
      .catch(async (error: unknown) => {
        log(
          `${sentenceOf(error)}. The mount is no longer visible: guests under the monitor continue without it, it waits for other users`,
        );
        await mount.detach();
      })
      .catch((error: unknown) => {
        ending = false;
        log(`the mount on ${mount.mountpoint} could not be ended: ${sentenceOf(error)}`);
      });
  };
  for (const signal of signals) {
    process.on(signal, end);
  }
  // The reader of the log may have ended (`2>&1 | head`). Without this handler, the error of each
  // line would be logged in its turn, endlessly.
  process.stderr.on('error', () => undefined);
  process.on('uncaughtException', (error) => {
    log(`unexpected: ${error.stack ?? error.message}`);
  });
  process.on('unhandledRejection', (reason) => {
    log(
      `unexpected: ${reason instanceof Error ? (reason.stack ?? reason.message) : String(reason)}`,
    );
  });
}
