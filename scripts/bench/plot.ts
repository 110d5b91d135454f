/** Plots as SVG: horizontal bars, lines, and shares of latencies. */
import type { Spread } from './results.js';

const COLORS = ['#1b6ca8', '#d1495b', '#edae49', '#3a7d44', '#6f4a8e', '#666666'];
const FONT = 'font-family="DejaVu Sans, Verdana, sans-serif"';

export interface Bars {
  title: string;
  unit: string;
  /** A line is drawn there. */
  base?: number;
  groups: string[];
  series: { name: string; values: (Spread | null)[] }[];
}

/** One group of bars for each row, with the range over the rounds. */
export function bars({ title, unit, base, groups, series }: Bars): string {
  const bar = 11;
  const group = series.length * bar + 9;
  const left = 190;
  const width = 820;
  const top = 56;
  const all = series.flatMap(({ values }) => values).filter((value) => value !== null);
  const most = Math.max(...all.map(({ median }) => median), base ?? 0) * 1.08;
  const x = (value: number) => left + (Math.min(value, most) / most) * (width - left - 70);
  const height = top + groups.length * group + 34;
  const parts = [
    heading(
      title,
      series.map(({ name }) => name),
    ),
  ];
  for (const tick of ticks(0, most, 6)) {
    parts.push(line(x(tick), top - 4, x(tick), height - 28, '#dddddd'));
    parts.push(text(x(tick), height - 12, `${short(tick)} ${unit}`, 'middle'));
  }
  if (base !== undefined) parts.push(line(x(base), top - 4, x(base), height - 28, '#222222'));
  groups.forEach((name, g) => {
    const y = top + g * group;
    parts.push(text(left - 8, y + (series.length * bar) / 2 + 4, name, 'end'));
    series.forEach(({ values }, s) => {
      const value = values[g];
      if (!value) return;
      const at = y + s * bar;
      parts.push(
        `<rect x="${left}" y="${at}" width="${px(x(value.median) - left)}" height="${bar - 1}" fill="${color(s)}"/>`,
      );
      parts.push(line(x(value.low), at + bar / 2, x(value.high), at + bar / 2, '#222222'));
      parts.push(
        text(
          Math.max(x(value.median), x(value.high)) + 4,
          at + bar - 2,
          short(value.median),
          'start',
          9,
        ),
      );
    });
  });
  return svg(width, height, parts);
}

export interface Lines {
  title: string;
  x: { label: string; logarithmic?: boolean; names?: Map<number, string> };
  y: { label: string; logarithmic?: boolean };
  series: { name: string; points: [number, number][] }[];
  /** A horizontal line with a label. */
  mark?: { at: number; name: string };
}

export function lines({ title, x: xs, y: ys, series, mark }: Lines): string {
  const [width, height, left, right, top, bottom] = [820, 380, 74, 24, 56, 54];
  const points = series.flatMap((each) => each.points);
  const bounds = (values: number[], logarithmic = false): [number, number] => {
    const high = Math.max(...values);
    return logarithmic
      ? [Math.min(...values.filter((value) => value > 0)), high]
      : [Math.min(0, ...values), high * 1.05];
  };
  const [lowX, highX] = bounds(
    points.map(([x]) => x),
    xs.logarithmic,
  );
  const [lowY, highY] = bounds(
    [...points.map(([, y]) => y), ...(mark ? [mark.at] : [])],
    ys.logarithmic,
  );
  const scale = (low: number, high: number, logarithmic = false) => {
    const f = (value: number) => (logarithmic ? Math.log(Math.max(value, low)) : value);
    return (value: number) => (f(high) === f(low) ? 0.5 : (f(value) - f(low)) / (f(high) - f(low)));
  };
  const atX = scale(lowX, highX, xs.logarithmic);
  const atY = scale(lowY, highY, ys.logarithmic);
  const x = (value: number) => left + atX(value) * (width - left - right);
  const y = (value: number) => height - bottom - atY(value) * (height - top - bottom);
  const parts = [
    heading(
      title,
      series.map(({ name }) => name),
    ),
  ];
  for (const tick of ys.logarithmic ? decades(lowY, highY) : ticks(lowY, highY, 6)) {
    parts.push(
      line(left, y(tick), width - right, y(tick), '#dddddd'),
      text(left - 6, y(tick) + 4, short(tick), 'end'),
    );
  }
  const ticksX = xs.names
    ? [...xs.names.keys()]
    : xs.logarithmic
      ? decades(lowX, highX)
      : ticks(lowX, highX, 8);
  for (const tick of ticksX) {
    parts.push(line(x(tick), top, x(tick), height - bottom, '#eeeeee'));
    parts.push(text(x(tick), height - bottom + 16, xs.names?.get(tick) ?? short(tick), 'middle'));
  }
  if (mark) {
    parts.push(line(left, y(mark.at), width - right, y(mark.at), '#222222'));
    parts.push(text(width - right, y(mark.at) - 4, mark.name, 'end'));
  }
  series.forEach((each, s) => {
    const path = each.points.map(([px_, py]) => `${px(x(px_))},${px(y(py))}`).join(' ');
    parts.push(`<polyline points="${path}" fill="none" stroke="${color(s)}" stroke-width="1.8"/>`);
    if (each.points.length <= 24)
      for (const [px_, py] of each.points)
        parts.push(`<circle cx="${px(x(px_))}" cy="${px(y(py))}" r="3" fill="${color(s)}"/>`);
  });
  parts.push(text((left + width) / 2, height - 14, xs.label, 'middle'));
  parts.push(
    `<text x="16" y="${height / 2}" font-size="11" ${FONT} text-anchor="middle" transform="rotate(-90 16 ${height / 2})">${escape(ys.label)}</text>`,
  );
  return svg(width, height, parts);
}

/** For each system, the share of events that took no longer. */
export function shares(
  title: string,
  series: { name: string; histogram: [number, number][] }[],
): string {
  return lines({
    title,
    x: { label: 'microseconds', logarithmic: true },
    y: { label: 'share of touches that took no longer' },
    series: series.map(({ name, histogram }) => {
      const total = histogram.reduce((sum, [, count]) => sum + count, 0);
      let sum = 0;
      const points = histogram.map(([at, count]): [number, number] => [at, (sum += count) / total]);
      return { name, points };
    }),
  });
}

function svg(width: number, height: number, parts: string[]): string {
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size}>\n<rect width="100%" height="100%" fill="white"/>\n${parts.join('\n')}\n</svg>\n`;
}

function heading(title: string, names: string[]): string {
  const parts = [
    `<text x="12" y="20" font-size="14" font-weight="bold" ${FONT}>${escape(title)}</text>`,
  ];
  let at = 12;
  names.forEach((name, s) => {
    parts.push(
      `<rect x="${at}" y="30" width="11" height="11" fill="${color(s)}"/>`,
      text(at + 16, 40, name, 'start'),
    );
    at += 30 + name.length * 7;
  });
  return parts.join('\n');
}

function text(
  x: number,
  y: number,
  words: string,
  anchor: 'start' | 'middle' | 'end',
  size = 11,
): string {
  return `<text x="${px(x)}" y="${px(y)}" font-size="${size}" ${FONT} text-anchor="${anchor}">${escape(words)}</text>`;
}

function line(x1: number, y1: number, x2: number, y2: number, stroke: string): string {
  return `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${px(y2)}" stroke="${stroke}"/>`;
}

function ticks(low: number, high: number, count: number): number[] {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough) ?? rough;
  const found: number[] = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step)
    found.push(Number(at.toPrecision(12)));
  return found;
}

function decades(low: number, high: number): number[] {
  const found: number[] = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * 1.0001; ++power)
    found.push(10 ** power);
  return found;
}

const color = (index: number): string => COLORS[index % COLORS.length] ?? 'black';
const px = (value: number): string => value.toFixed(1);
const escape = (words: string): string => words.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

/** Three significant digits. */
export function short(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  const rounded = value.toFixed(Math.min(digits, 4));
  return rounded.includes('.')
    ? rounded.replace(/\.?0+$/, '')
    : Number(rounded).toLocaleString('en-US');
}
