/** What `status` says of an attached process. What a monitor answers may be anything: nothing of it is trusted. */
import type { Monitor } from './monitor.js';

export interface AttachmentStatus {
  pid: number;
  command: string;
  uid: number;
  since: string;
  writable: boolean;
  /** What its monitor counts. */
  monitor: unknown;
}

/** How many faults of it wait for the disk; null where its monitor is too busy to say. */
export function stalledFaults({ monitor }: AttachmentStatus): number | null {
  if (typeof monitor !== 'object' || monitor === null || !('stalled' in monitor)) return null;
  return typeof monitor.stalled === 'number' ? monitor.stalled : null;
}

export async function attachmentStatus(monitor: Monitor): Promise<AttachmentStatus> {
  const { pid, command, uid, since, writable } = monitor;
  return { pid, command, uid, since: since.toISOString(), writable, monitor: parsed(await monitor.report()) };
}

/** null: it is busy, or says nothing that can be understood. */
function parsed(text: string | null): unknown {
  try {
    return JSON.parse(text ?? 'null');
  } catch {
    return null;
  }
}
