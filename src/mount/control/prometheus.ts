/** The text that Prometheus reads (exposition format 0.0.4). Only this file knows its syntax. */

/** Label values by their names. */
export type Labels = Record<string, string>;

export interface Sample {
  labels: Labels;
  value: number;
  /** Of a histogram's samples: '_bucket', '_sum' or '_count'. */
  suffix?: string;
}

/** The format requires that all samples of a family follow its head. */
export interface Family {
  name: string;
  type: 'gauge' | 'counter' | 'histogram';
  help: string;
  samples: Sample[];
}

export function prometheusText(families: Family[]): string {
  return families.map(familyText).join('');
}

function familyText({ name, type, help, samples }: Family): string {
  const lines = samples.map(
    ({ labels, value, suffix = '' }) => `${name}${suffix}{${labelsText(labels)}} ${value}\n`,
  );
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join('')}`;
}

/** In a label value, backslash, quote and newline are escaped. */
function labelsText(labels: Labels): string {
  return Object.entries(labels)
    .map(([name, value]) => {
      const escaped = value.replace(/[\\"\n]/g, (character) =>
        character === '\n' ? '\\n' : `\\${character}`,
      );
      return `${name}="${escaped}"`;
    })
    .join(',');
}

/**
 * The samples of one histogram. `counts`: the number of observations between two bounds, and last
 * the number above all bounds. `bounds`: the upper bounds, in seconds; there is one fewer than
 * counts. `sum`: of all observations, in seconds.
 */
export function histogramSamples(
  labels: Labels,
  bounds: number[],
  counts: number[],
  sum: number,
): Sample[] {
  let below = 0;
  const buckets = bounds.map((bound, at): Sample => {
    below += counts[at] ?? 0;
    return { labels: { ...labels, le: `${bound}` }, value: below, suffix: '_bucket' };
  });
  const count = below + (counts[bounds.length] ?? 0);
  return [
    ...buckets,
    { labels: { ...labels, le: '+Inf' }, value: count, suffix: '_bucket' },
    { labels, value: sum, suffix: '_sum' },
    { labels, value: count, suffix: '_count' },
  ];
}
