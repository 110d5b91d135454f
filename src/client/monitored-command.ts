/**
 * Runs a command under the monitor: sets its environment, and checks first that the monitor will
 * work.
 */
import { type ChildProcess, spawn, type SpawnOptions } from 'node:child_process';
import { accessSync } from 'node:fs';
import path from 'node:path';
import { HOW_TO_BUILD, MONITOR } from '../engine/built.js';
import { PcowError } from '../engine/index.js';
import { become, checkMonitor } from '../engine/run.js';

/** The options of a command's monitor. */
export interface MonitorOptions {
  /**
   * Bytes of clean copies of lower blocks that the process may keep in memory, for all its images
   * together; default: a quarter of the memory.
   */
  cleanCache?: number | undefined;
  /** The file to which the monitor appends its log. */
  log?: string | undefined;
}

/** Replaces this process by the command, under the monitor. Returns only by throwing. */
export function runMonitored(
  words: readonly [string, ...string[]],
  options: MonitorOptions,
): never {
  checkMonitor();
  const others = withoutMonitor(process.env.LD_PRELOAD);
  const preload = [monitorLibrary(), ...others].join(':');
  return become(words, { ...process.env, ...monitorVariables(options), LD_PRELOAD: preload });
}

/**
 * Starts a command under the monitor: its mappings of flat files are the images' own memory. The
 * options are those of Node's spawn(). Throws PCOW_PERMISSION if the monitor may not use
 * userfaultfd; the message says how to get the right.
 */
export function spawnMonitored(
  command: string,
  args: readonly string[] = [],
  { monitor = {}, ...options }: SpawnOptions & { monitor?: MonitorOptions } = {},
): ChildProcess {
  checkMonitor();
  const { env = process.env } = options;
  const preload = [monitorLibrary(), ...withoutMonitor(env.LD_PRELOAD)].join(':');
  return spawn(command, args, {
    ...options,
    env: { ...env, ...monitorVariables(monitor), LD_PRELOAD: preload },
  });
}

/**
 * Replaces this process by the command, without the monitor, even if the environment preloads it.
 */
export function runPlain(words: readonly [string, ...string[]]): never {
  const others = withoutMonitor(process.env.LD_PRELOAD);
  return become(words, {
    ...process.env,
    LD_PRELOAD: others.length === 0 ? undefined : others.join(':'),
  });
}

/** Lines for a shell: commands that it starts afterwards run under the monitor. */
export function shellExports(options: MonitorOptions): string {
  const variables = Object.entries(monitorVariables(options)).map(
    ([name, value]) => `export ${name}=${shellQuoted(value)}\n`,
  );
  return `export LD_PRELOAD=${shellQuoted(monitorLibrary())}"\${LD_PRELOAD:+:$LD_PRELOAD}"\n${variables.join('')}`;
}

function monitorVariables({ cleanCache, log }: MonitorOptions): Record<string, string> {
  return {
    ...(cleanCache === undefined ? {} : { PCOW_CLEAN_CACHE: String(cleanCache) }),
    // An absolute path: the command may change its directory, and a mere number would mean a file
    // descriptor.
    ...(log === undefined ? {} : { PCOW_MONITOR_LOG: path.resolve(log) }),
  };
}

/**
 * The library to preload. Fails if it is not built, or if the dynamic linker cannot load it from
 * its path.
 */
export function monitorLibrary(): string {
  if (/[\s:]/.test(MONITOR)) {
    throw new PcowError(
      'PCOW_UNSUPPORTED',
      `the monitor can't be preloaded from ${MONITOR}: install Pcow at a path without white space and colons`,
    );
  }
  try {
    accessSync(MONITOR);
  } catch (cause) {
    throw new PcowError(
      'PCOW_UNSUPPORTED',
      `the monitor (${path.basename(MONITOR)}) is not built: ${HOW_TO_BUILD}`,
      {
        cause,
      },
    );
  }
  return MONITOR;
}

/** The entries of LD_PRELOAD without the monitor: ld.so(8) separates them by spaces and colons. */
function withoutMonitor(preload = ''): string[] {
  return preload.split(/[\s:]+/).filter((library) => library !== '' && library !== MONITOR);
}

function shellQuoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
