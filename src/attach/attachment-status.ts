/**
 * The part of `status` about an attached process. A monitor's answer may contain anything: nothing
 * in it is trusted.
 */
import type { Monitor } from './monitor.js';

export interface AttachmentStatus {
  pid: number;
  command: string;
  uid: number;
  since: string;
  writable: boolean;
  /** The report of its monitor. */
  monitor: unknown;
}

/** How many of its faults wait for the disk; null if its monitor is too busy to answer. */
export function stalledFaults({ monitor }: AttachmentStatus): number | null {
  if (typeof monitor !== 'object' || monitor === null || !('stalled' in monitor)) return null;
  return typeof monitor.stalled === 'number' ? monitor.stalled : null;
}

export async function attachmentStatus(monitor: Monitor): Promise<AttachmentStatus> {
  const { pid, command, uid, since, writable } = monitor;
  return {
    pid,
    command,
    uid,
    since: since.toISOString(),
    writable,
    monitor: parsed(await monitor.report()),
  };
}

/** Returns null if the monitor is busy, or if its answer is not valid JSON. */
function parsed(text: string | null): unknown {
  try {
    return JSON.parse(text ?? 'null');
  } catch {
    return null;
  }
}
