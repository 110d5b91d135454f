/** What `status` says of an attached process. What a monitor answers may be anything: nothing of it is trusted. */
import type { Monitor } from './monitor.js';

export async function attachmentStatus(monitor: Monitor): Promise<object> {
  const { pid, command, uid, since, writable } = monitor;
  return { pid, command, uid, since: since.toISOString(), writable, monitor: parsed(await monitor.report('status')) };
}

/** null: it is busy, or says nothing that can be understood. */
function parsed(text: string | null): unknown {
  try {
    return JSON.parse(text ?? 'null');
  } catch {
    return null;
  }
}
