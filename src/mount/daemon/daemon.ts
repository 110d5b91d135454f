/** The process of a mount: started, told to end, and what it does meanwhile. */
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
  /** A file that the daemon appends its log to, and opens anew at SIGHUP. Default: no log. */
  log?: string | undefined;
}

/** What the daemon says over IPC, once. */
export type Readiness = { ready: true } | { ready: false; code: PcowErrorCode; errno: number; message: string };

/** Starts a process that mounts a directory and outlives this one. Resolves when the mount is ready, with its pid. */
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
      [MOUNT_PROGRAM, path.resolve(directory), path.resolve(mountpoint), JSON.stringify(settings), output?.file ?? ''],
      { detached: true, cwd: '/', stdio: ['ignore', stream, stream, 'ipc'] },
    );
    const end = once(child, 'exit').then(([status, signal]) => {
      throw mountError(
        `the mount of ${directory} ended before it was ready (${String(signal ?? status)}): ` +
          'with --foreground it says more',
      );
    });
    end.catch(() => undefined);
    const said = once(child, 'message').catch((cause: unknown) => {
      throw mountError(`the process of the mount could not be started: ${sentenceOf(cause)}`, cause);
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

/** `file`: as a path that the daemon can open again from its own working directory. */
async function openLog(given: string): Promise<{ handle: FileHandle; file: string }> {
  try {
    const directory = await realpath(path.dirname(path.resolve(given)));
    const file = path.join(directory, path.basename(given));
    return { handle: await open(file, 'a', 0o640), file };
  } catch (cause) {
    throw mountError(`the log file ${given} can't be written: ${sentenceOf(cause)}`, cause);
  }
}

/** Signals that end a mount in the foreground: the last is what its terminal sends as it closes. */
const ENDS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** A daemon has no terminal: SIGHUP is from who has renamed its log. */
export function reopenLogOnHangup(file: string): void {
  process.on('SIGHUP', () => {
    if (file === '') {
      return;
    }
    try {
      logTo(file);
      log('SIGHUP: the log is opened anew');
    } catch (error) {
      log(sentenceOf(error));
    }
  });
}

/**
 * Lets signals end a mount, and keeps the process alive through exceptions that nobody expected: other images must not suffer from
 * them. Where files are open, the mount goes out of sight, and ends with the last of them that somebody
 * has open who needs it: guests under the monitor do not (hand-over.ts).
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
          `${sentenceOf(error)}. The mount is out of sight now: guests under the monitor go on without it, others are waited for`,
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
  // Who read the log may be gone (`2>&1 | head`): an error of its own for every line would be logged in its turn, for ever.
  process.stderr.on('error', () => undefined);
  process.on('uncaughtException', (error) => {
    log(`unexpected: ${error.stack ?? error.message}`);
  });
  process.on('unhandledRejection', (reason) => {
    log(`unexpected: ${reason instanceof Error ? (reason.stack ?? reason.message) : String(reason)}`);
  });
}
