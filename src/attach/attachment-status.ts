/** What `status` and `metrics` say of an attached process. What a monitor answers may be anything: nothing of it is trusted. */
import type { ImageEntry } from '../mount/image-entry.js';
import type { Monitor } from './monitor.js';

/** A sample or a comment of the Prometheus text format, of a family of ours. */
const METRICS_LINE = /^(?:# (?:HELP|TYPE) pcow_\w+ [^\n]*|pcow_\w+(?:\{[^\n]*\})? [-+.\w]+)$/;

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

/** The lines of the process that writes the image; none where it is not attached, or the monitor is busy. */
export async function attachmentMetrics({ monitor }: ImageEntry): Promise<string> {
  const text = (await monitor?.report('metrics')) ?? '';
  return text
    .split('\n')
    .filter((line) => METRICS_LINE.test(line))
    .map((line) => `${line}\n`)
    .join('');
}
