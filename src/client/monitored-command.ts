/** Running a command under the monitor: its environment, and the check that the monitor will be able to work. */
import { type ChildProcess, spawn, type SpawnOptions } from 'node:child_process';
import { accessSync } from 'node:fs';
import path from 'node:path';
import { HOW_TO_BUILD, MONITOR } from '../engine/built.js';
import { PcowError } from '../engine/index.js';
import { become, checkMonitor } from '../engine/run.js';

/** How the monitor of a command works. */
export interface MonitorOptions {
  /** Bytes of clean copies of lower blocks that each image may keep in memory; default: a quarter of the memory. */
  cleanCache?: number | undefined;
  /** The file that the monitor appends its log to. */
  log?: string | undefined;
}

/** Runs the command in place of this process, under the monitor. Returns only by throwing. */
export function runMonitored(words: readonly [string, ...string[]], options: MonitorOptions): never {
  checkMonitor();
  const others = withoutMonitor(process.env.LD_PRELOAD);
  const preload = [monitorLibrary(), ...others].join(':');
  return become(words, { ...process.env, ...monitorVariables(options), LD_PRELOAD: preload });
}

/**
 * Starts a command under the monitor: what it maps of flat files is the images' own memory. As spawn() of Node, whose options are taken. Throws
 * PCOW_PERMISSION, with what grants the right, where the monitor could not work.
 */
export function spawnMonitored(
  command: string,
  args: readonly string[] = [],
  { monitor = {}, ...options }: SpawnOptions & { monitor?: MonitorOptions } = {},
): ChildProcess {
  checkMonitor();
  const { env = process.env } = options;
  const preload = [monitorLibrary(), ...withoutMonitor(env.LD_PRELOAD)].join(':');
  return spawn(command, args, { ...options, env: { ...env, ...monitorVariables(monitor), LD_PRELOAD: preload } });
}

/** Runs the command in place of this process, without the monitor, also where the environment has it. */
export function runPlain(words: readonly [string, ...string[]]): never {
  const others = withoutMonitor(process.env.LD_PRELOAD);
  return become(words, { ...process.env, LD_PRELOAD: others.length === 0 ? undefined : others.join(':') });
}

/** Lines for a shell: what is started after them has the monitor. */
export function shellExports(options: MonitorOptions): string {
  const variables = Object.entries(monitorVariables(options)).map(
    ([name, value]) => `export ${name}=${shellQuoted(value)}\n`,
  );
  return `export LD_PRELOAD=${shellQuoted(monitorLibrary())}"\${LD_PRELOAD:+:$LD_PRELOAD}"\n${variables.join('')}`;
}

function monitorVariables({ cleanCache, log }: MonitorOptions): Record<string, string> {
  return {
    ...(cleanCache === undefined ? {} : { PCOW_CLEAN_CACHE: String(cleanCache) }),
    // Absolute: the command may change its directory, and a mere number would be a file descriptor.
    ...(log === undefined ? {} : { PCOW_MONITOR_LOG: path.resolve(log) }),
  };
}

/** The library to preload. Fails where it is not built, or lies where the dynamic linker can't find it. */
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
    throw new PcowError('PCOW_UNSUPPORTED', `the monitor (${path.basename(MONITOR)}) is not built: ${HOW_TO_BUILD}`, {
      cause,
    });
  }
  return MONITOR;
}

/** The entries of LD_PRELOAD, less our own: ld.so(8) takes spaces and colons between them. */
function withoutMonitor(preload = ''): string[] {
  return preload.split(/[\s:]+/).filter((library) => library !== '' && library !== MONITOR);
}

function shellQuoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
