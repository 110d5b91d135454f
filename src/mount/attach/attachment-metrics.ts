/** What `metrics` says of attached processes. What a monitor answers may be anything: nothing of it is trusted. */
import type { ImageEntry } from '../images/image-entry.js';
import { imageLabel } from '../control/metrics.js';

/** "# HELP" and "# TYPE" of a family of ours, in the Prometheus text format. */
const HEAD = /^# (?:HELP|TYPE) (pcow_\w+) [^\n]*$/;

/** A sample: its name, the inside of its braces where it has any, its value. */
const SAMPLE = /^(pcow_\w+)(?:\{([^\n]*)\})? ([-+.\w]+)$/;

/**
 * The figures of the processes that write these images, with the images' names; none of an image that is not attached, or whose
 * monitor is busy. The format wants the samples of a family in one group: those of all images stand below one head.
 */
export async function attachmentMetrics(entries: ImageEntry[]): Promise<string> {
  const heads = new Map<string, string[]>();
  const samples = new Map<string, string[]>();
  const reports = await Promise.all(entries.map(async ({ monitor }) => monitor?.report('metrics')));
  for (const [at, { name }] of entries.entries()) {
    let family = '';
    const described = new Set(heads.keys());
    for (const line of reports[at]?.split('\n') ?? []) {
      const head = HEAD.exec(line)?.[1];
      const [, sample = '', labels, value = ''] = SAMPLE.exec(line) ?? [];
      if (head !== undefined) {
        family = head;
        if (!described.has(head)) add(heads, head, line);
      } else if (sample !== '') {
        // The samples of a histogram have longer names than their family.
        if (family === '' || !sample.startsWith(family)) family = sample;
        const all = labels === undefined || labels === '' ? imageLabel(name) : `${imageLabel(name)},${labels}`;
        add(samples, family, `${sample}{${all}} ${value}`);
      }
    }
  }
  return [...samples]
    .flatMap(([family, lines]) => [...(heads.get(family) ?? []), ...lines])
    .map((line) => `${line}\n`)
    .join('');
}

function add(groups: Map<string, string[]>, family: string, line: string): void {
  groups.set(family, [...(groups.get(family) ?? []), line]);
}
