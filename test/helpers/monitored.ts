/** Programs under the monitor: their shared mappings of flat files are the image's own blocks. */
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';

import type { ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { MiB, type Status, type TestMount } from './mount.js';
import { Conversation } from './program.js';

const library = fileURLToPath(
  new URL('../../../native/build/Release/libpcow-monitor.so', import.meta.url),
);

/** The command that runs another one under the monitor; `settings` are PCOW_… variables. */
export function monitorPrefix(settings: Record<string, string> = {}): string[] {
  return ['env', `LD_PRELOAD=${library}`, ...environmentOf(settings)];
}

/** As env(1) expects it. */
export function environmentOf(settings: Record<string, string>): string[] {
  return Object.entries(settings).map(([name, value]) => `${name}=${value}`);
}

/** A conversation with a program of test/programs (program.ts) under the monitor. */
export async function monitored(
  t: ExecutionContext<unknown>,
  file: string,
  words: string[],
  settings: Record<string, string> = {},
): Promise<Conversation> {
  const [command = '', ...rest] = [...monitorPrefix(settings), file, ...words];
  return Conversation.start(t, command, ...rest);
}

/** The monitor's counters: see kFigures in native/monitor/statistics.cc. */
export type MonitorReport = Record<string, number> & { faults: Record<string, { count: number }> };

export interface AttachedStatus extends Status {
  attached: { pid: number; command: string; monitor: MonitorReport | null } | null;
}

export async function attachedStatus(mount: TestMount, name: string): Promise<AttachedStatus> {
  return (await mount.status(name)) as AttachedStatus;
}

/** The monitor's report. Fails if no process is attached. */
export async function monitorReport(mount: TestMount, name: string): Promise<MonitorReport> {
  for (let tries = 0; tries < 50; ++tries) {
    const { attached } = await attachedStatus(mount, name);
    if (attached === null) throw new Error(`nobody is attached to ${name}`);
    if (attached.monitor) return attached.monitor;
    await sleep(100); // it was busy
  }
  throw new Error(`the monitor of ${name} does not answer`);
}

/** Waits until a process is attached, or (null) none is. */
export async function attachedTo(
  mount: TestMount,
  name: string,
  pid: number | null,
): Promise<void> {
  for (let tries = 0; tries < 5000; ++tries) {
    if (((await attachedStatus(mount, name)).attached?.pid ?? null) === pid) return;
    await sleep(20);
  }
  throw new Error(`${name} is not attached to ${pid ?? 'nobody'}`);
}

/**
 * An image on a base. `valueOf` returns the value of every byte of a block of the base; 0 leaves a
 * hole.
 */
export async function imageOnBase(
  mount: TestMount,
  name: string,
  size: number,
  valueOf: (block: number) => number,
): Promise<void> {
  const base = mount.image(`${name}-base`);
  await Image.create(base, { size });
  const image = await Image.open(base, { write: true });
  const { blockSize } = image.info();
  const bytes = Buffer.alloc(MiB);
  for (let offset = 0; offset < size; offset += MiB) {
    let holes = 0;
    for (let at = 0; at < MiB; at += blockSize) {
      const value = valueOf((offset + at) / blockSize);
      if (value === 0) ++holes;
      bytes.fill(value, at, at + blockSize);
    }
    if (holes === 0) {
      await image.write(bytes.subarray(0, Math.min(MiB, size - offset)), offset);
      continue;
    }
    for (let at = 0; at < MiB && offset + at < size; at += blockSize) {
      if (bytes[at] !== 0) await image.write(bytes.subarray(at, at + blockSize), offset + at);
    }
  }
  await image.snapshot('base');
  await image.close();
  await Image.create(mount.image(name), { base: { path: base, snapshot: 'base' } });
}
