/**
 * Shows the progress of long work: on a terminal a bar with rate and time left, with `--progress
 * json` lines of JSON, otherwise nothing. Ctrl-C stops the work and leaves everything intact. All
 * output goes to stderr: stdout is for the results of a command.
 */
import type { SingleBar } from 'cli-progress';
import { Option } from 'commander';
import type { LongOptions } from '../../src/engine/index.js';
import { inThisLocale } from './locale.js';
import { formatSize } from '../../src/images/sizes.js';
import { progressLine } from './terminal-width.js';

/** The values of `--progress`. */
export type ProgressForm = 'bar' | 'json' | 'none';

/** `--progress`: for every long command. */
export function progressOption(): Option {
  return new Option(
    '--progress <form>',
    'how to show progress on standard error; default: a bar on a terminal',
  ).choices(['bar', 'json', 'none']);
}

/** For a terminal whose width is unknown. */
const DEFAULT_WIDTH = 80;

/** Milliseconds between two JSON lines. */
const INTERVAL = 250;

/** The progress of some work; `done` and `total` are bytes. */
interface Meter {
  update(done: number, total: number): void;
  stop(): void;
}

/** LongOptions with all fields set. */
export interface Long extends LongOptions {
  signal: AbortSignal;
  onProgress: (done: number, total: number) => void;
}

/**
 * Runs `work`, named `label`, with a meter, and with a signal that the first Ctrl-C or SIGTERM
 * aborts (PCOW_CANCELLED).
 */
export async function withProgress<T>(
  label: string,
  form: ProgressForm | undefined,
  work: (options: Long) => Promise<T>,
): Promise<T> {
  const interruption = new AbortController();
  const interrupt = () => {
    interruption.abort();
  };
  const meter = await meterOf(label, form ?? (process.stderr.isTTY ? 'bar' : 'none'));
  process.once('SIGINT', interrupt);
  process.once('SIGTERM', interrupt);
  try {
    return await work({
      signal: interruption.signal,
      onProgress: (done, total) => {
        meter.update(done, total);
      },
    });
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
    meter.stop();
  }
}

/**
 * For commands that print their output during the work: on a terminal, a bar would appear between
 * its lines.
 */
export function besideOutput(form: ProgressForm | undefined): ProgressForm | undefined {
  return form ?? (process.stdout.isTTY ? 'none' : undefined);
}

/** Passes extents of an image of `size` bytes on, and reports the progress. */
export async function* reported<E extends { offset: number; length: number }>(
  extents: AsyncIterable<E>,
  size: number,
  onProgress: (done: number, total: number) => void,
): AsyncGenerator<E, void> {
  for await (const extent of extents) {
    yield extent;
    onProgress(extent.offset + extent.length, size);
  }
}

async function meterOf(label: string, form: ProgressForm): Promise<Meter> {
  switch (form) {
    case 'bar':
      return new Bar(label, (await import('cli-progress')).SingleBar);
    case 'json':
      return new Lines(label);
    case 'none':
      return { update: () => undefined, stop: () => undefined };
  }
}

/** What is shown beside the bar. */
interface Shown {
  rate: string;
  left: string;
}

class Bar implements Meter {
  readonly #bar: SingleBar;
  readonly #rate = new Rate();
  #started = false;

  constructor(label: string, Drawn: typeof SingleBar) {
    this.#bar = new Drawn({
      format: (_, { progress }, shown) =>
        inThisLocale(
          progressLine(label, progress, shown as Shown, process.stderr.columns || DEFAULT_WIDTH),
        ),
      clearOnComplete: true,
      stream: process.stderr,
    });
  }

  update(done: number, total: number): void {
    const { rate, left } = this.#rate.at(done, total);
    const shown: Shown = {
      rate: rate === null ? '' : `${formatSize(Math.round(rate))}/s`,
      left: left === null ? '' : `${formatSeconds(left)} left`,
    };
    if (!this.#started) {
      this.#bar.start(total, done, shown);
      this.#started = true;
    }
    this.#bar.setTotal(total);
    this.#bar.update(done, shown);
  }

  stop(): void {
    if (this.#started) {
      this.#bar.stop();
    }
  }
}

/**
 * One JSON object on each line: `operation`, `done` and `total` in bytes, `rate` in bytes per
 * second, `left` in seconds.
 */
class Lines implements Meter {
  readonly #label: string;
  readonly #rate = new Rate();
  #written = -Infinity;
  #waiting: string | null = null;

  constructor(label: string) {
    this.#label = label;
  }

  update(done: number, total: number): void {
    const { rate, left } = this.#rate.at(done, total);
    const now = performance.now();
    this.#waiting = JSON.stringify({
      operation: this.#label,
      done,
      total,
      rate: rate && Math.round(rate),
      left: left && Math.round(left),
    });
    if (now - this.#written >= INTERVAL) {
      this.#written = now;
      this.#flush();
    }
  }

  /** The last line is always printed: it shows how far the work came. */
  stop(): void {
    this.#flush();
  }

  #flush(): void {
    if (this.#waiting !== null) {
      process.stderr.write(`${this.#waiting}\n`);
      this.#waiting = null;
    }
  }
}

/** Bytes per second since the first report; null until there is enough data. */
class Rate {
  #start: { at: number; done: number } | null = null;

  at(done: number, total: number): { rate: number | null; left: number | null } {
    const now = performance.now();
    this.#start ??= { at: now, done };
    const seconds = (now - this.#start.at) / 1000;
    if (seconds < 0.1 || done <= this.#start.done) {
      return { rate: null, left: null };
    }
    const rate = (done - this.#start.done) / seconds;
    return { rate, left: Math.max(0, total - done) / rate };
  }
}

function formatSeconds(seconds: number): string {
  const whole = Math.ceil(seconds);
  const two = (value: number) => String(value).padStart(2, '0');
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours > 0
    ? `${hours}:${two(minutes)}:${two(whole % 60)}`
    : `${minutes}:${two(whole % 60)}`;
}
