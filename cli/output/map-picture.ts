/**
 * A picture of an image as SVG: at the top what a read returns, in the colours of the layers that
 * hold it; below that a row for each layer, newest first. The width is the address space. A column
 * stands for many bytes; the more of them there are, the darker it is.
 */
import path from 'node:path';
import { type Image, isPcowError, type LongOptions } from '../../src/engine/index.js';
import { formatSize } from '../../src/images/sizes.js';

const COLOURS = [
  '#2563eb',
  '#f59e0b',
  '#10b981',
  '#8b5cf6',
  '#ef4444',
  '#06b6d4',
  '#84cc16',
  '#ec4899',
  '#a16207',
];

const WIDTH = 1160;
const STRIP = { x: 220, width: 780 };
const AMOUNT_X = WIDTH - 36;
const TOP_HEIGHT = 56;
const ROW_HEIGHT = 26;
const ROW_STEP = 44;
/** The opacity of a column, by how full it is at most. */
const SHADES = [
  { full: 0.1, opacity: 0.6 },
  { full: 0.5, opacity: 0.8 },
  { full: Infinity, opacity: 1 },
];

interface Layer {
  name: string;
  file: string;
  colour: string;
  data: number;
  /** Bytes in each column: read from this layer, held by it, and held by it as zeros. */
  seen: Columns;
  held: Columns;
  zeros: Columns;
}

/** The picture of the chain of `snapshot`, or of the image as it is now. */
export async function mapPicture(
  image: Image,
  name: string,
  snapshot: string | null,
  long: LongOptions,
): Promise<string> {
  const { layers, size } = await settledLayersOf(image, snapshot, long);
  const nothing = layers.every(({ data }) => data === 0);
  const bottom = 178 + TOP_HEIGHT + layers.length * ROW_STEP;
  const total = layers.reduce((sum, { data }) => sum + data, 0);
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${bottom + 62}" viewBox="0 0 ${WIDTH} ${bottom + 62}" font-family="Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif">`,
    '<defs><pattern id="zeros" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#fff"/><rect width="2" height="6" fill="#64748b"/></pattern></defs>',
    `<rect width="100%" height="100%" fill="#fff"/>`,
    text(
      36,
      50,
      name + (snapshot === null ? '' : `@${snapshot}`),
      'font-size="24" font-weight="700" fill="#0f172a"',
    ),
    text(
      36,
      76,
      `${formatSize(size)}, ${nothing ? 'empty' : `${formatSize(total)} of data`} in ${layers.length === 1 ? 'one layer' : `${layers.length} layers`}`,
      'font-size="14" fill="#64748b"',
    ),
    text(
      36,
      112 + TOP_HEIGHT / 2 + 5,
      'what is read',
      'font-size="14" font-weight="600" fill="#0f172a"',
    ),
    strip(112, TOP_HEIGHT),
    ...composite(layers, 112, TOP_HEIGHT),
    text(
      AMOUNT_X,
      112 + TOP_HEIGHT / 2 + 5,
      formatSize(seenOf(layers)),
      `${NUMBER} font-weight="600" fill="#0f172a"`,
    ),
    ...axis(size, 112 + TOP_HEIGHT),
    ...layers.flatMap((layer, index) => row(layer, 162 + TOP_HEIGHT + index * ROW_STEP)),
    ...legend(bottom + 18),
    '</svg>',
  ];
  return `${parts.join('\n')}\n`;
}

const NUMBER = 'font-size="13" text-anchor="end"';

/** Bytes by column. */
class Columns {
  readonly bytes = new Float64Array(STRIP.width);

  constructor(readonly size: number) {}

  get width(): number {
    return this.size / STRIP.width;
  }

  add(offset: number, length: number): void {
    const last = Math.min(STRIP.width - 1, Math.ceil((offset + length) / this.width) - 1);
    for (let column = Math.floor(offset / this.width); column <= last; column++) {
      const from = Math.max(offset, column * this.width);
      const to = Math.min(offset + length, (column + 1) * this.width);
      this.bytes[column] = this.at(column) + Math.max(0, to - from);
    }
  }

  at(column: number): number {
    return this.bytes[column] ?? 0;
  }
}

/** How often the picture is started again because the layers changed. */
const ATTEMPTS = 5;

/** All walks for a picture must be over the same chain. */
async function settledLayersOf(image: Image, snapshot: string | null, long: LongOptions) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await layersOf(image, snapshot, long);
    } catch (error) {
      if (!isPcowError(error, 'PCOW_BUSY') || attempt === ATTEMPTS) throw error;
    }
  }
}

async function layersOf(
  image: Image,
  snapshot: string | null,
  { signal, onProgress }: LongOptions,
): Promise<{ layers: Layer[]; size: number }> {
  const which = image.layerOf(snapshot);
  const chain = await image.chainState(which);
  const passes = image.chain(which).length + 1;
  const size = image.layers().find(({ id }) => id === which)?.size ?? 0;
  const layers: Layer[] = [];
  for (const { path: file, snapshot: layer } of image.chain(which)) {
    const depth = layers.length;
    const made = {
      name: layer ?? (depth === 0 ? 'now' : '(deleted)'),
      file: path.basename(file),
      colour: COLOURS[depth % COLOURS.length] ?? '',
      data: 0,
      seen: new Columns(size),
      held: new Columns(size),
      zeros: new Columns(size),
    };
    for await (const { offset, length, kind } of image.map({
      snapshot: which,
      depths: { first: depth, end: depth + 1 },
      chain,
      signal,
    })) {
      onProgress?.(depth * size + offset + length, passes * size);
      if (kind === 'data') {
        made.data += length;
        made.held.add(offset, length);
      } else if (kind === 'zero') {
        made.zeros.add(offset, length);
      }
    }
    layers.push(made);
  }
  for await (const { offset, length, kind, depth } of image.map({
    snapshot: which,
    chain,
    signal,
  })) {
    onProgress?.(layers.length * size + offset + length, passes * size);
    if (kind === 'data' && depth !== null) layers[depth]?.seen.add(offset, length);
  }
  return { layers, size };
}

function seenOf(layers: Layer[]): number {
  return layers.reduce(
    (sum, { seen }) => sum + seen.bytes.reduce((all, bytes) => all + bytes, 0),
    0,
  );
}

/** In a column, its layers are stacked in proportion to their shares. */
function composite(layers: Layer[], y: number, height: number): string[] {
  return runs((column) => {
    const total = layers.reduce((sum, { seen }) => sum + seen.at(column), 0);
    if (total === 0) {
      return '';
    }
    let top = y;
    const opacity = opacityOf(total / (layers[0]?.seen.width ?? 1));
    return layers
      .map(({ seen, colour }) => {
        const part = Math.round((seen.at(column) / total) * height * 4) / 4;
        const from = top;
        top += part;
        return part === 0
          ? ''
          : `y="${from}" height="${part}" fill="${colour}" opacity="${opacity}"`;
      })
      .filter((shape) => shape !== '')
      .join('|');
  });
}

function row(layer: Layer, y: number): string[] {
  const { name, file, colour, data, seen, held, zeros } = layer;
  const shape = (fill: string, opacity: number) =>
    `y="${y}" height="${ROW_HEIGHT}" fill="${fill}" opacity="${opacity}"`;
  return [
    `<rect x="36" y="${y + 3}" width="6" height="${ROW_HEIGHT - 6}" rx="3" fill="${colour}"/>`,
    text(52, y + 12, short(name, 22), 'font-size="14" font-weight="600" fill="#0f172a"'),
    text(52, y + 27, short(file, 26), 'font-size="11" fill="#94a3b8"'),
    strip(y, ROW_HEIGHT),
    ...runs((column) => {
      if (seen.at(column) > 0) return shape(colour, opacityOf(seen.at(column) / seen.width));
      return held.at(column) > 0
        ? shape(colour, 0.22)
        : zeros.at(column) > 0
          ? shape('url(#zeros)', 1)
          : '';
    }),
    text(AMOUNT_X, y + 18, formatSize(data), `${NUMBER} fill="#475569"`),
  ];
}

/** Neighbouring columns that look the same become one rectangle. */
function runs(look: (column: number) => string): string[] {
  const rectangles: string[] = [];
  let from = 0;
  let current = look(0);
  for (let column = 1; column <= STRIP.width; column++) {
    const next = column < STRIP.width ? look(column) : null;
    if (next === current) continue;
    for (const shape of current.split('|').filter((part) => part !== '')) {
      rectangles.push(
        `<rect x="${STRIP.x + from}" width="${column - from}" ${shape} shape-rendering="crispEdges"/>`,
      );
    }
    from = column;
    current = next ?? '';
  }
  return rectangles;
}

function opacityOf(full: number): number {
  return SHADES.find((shade) => full <= shade.full)?.opacity ?? 1;
}

function strip(y: number, height: number): string {
  return `<rect x="${STRIP.x}" y="${y}" width="${STRIP.width}" height="${height}" fill="#f1f5f9"/>`;
}

/** Ticks at round sizes. */
function axis(size: number, y: number): string[] {
  let step = 4096;
  while (size / step > 8) step *= 2;
  const ticks: string[] = [];
  for (let at = 0; at <= size; at += step) {
    const x = Math.round((STRIP.x + (at / size) * STRIP.width) * 10) / 10;
    ticks.push(
      `<line x1="${x}" x2="${x}" y1="${y + 4}" y2="${y + 9}" stroke="#cbd5e1"/>`,
      text(
        x,
        y + 22,
        at === 0 ? '0' : formatSize(at),
        'font-size="11" text-anchor="middle" fill="#94a3b8"',
      ),
    );
  }
  return ticks;
}

function legend(y: number): string[] {
  const entries = [
    { fill: COLOURS[0] ?? '', opacity: 1, words: 'read from this layer' },
    { fill: COLOURS[0] ?? '', opacity: 0.22, words: 'hidden by newer layers' },
    { fill: 'url(#zeros)', opacity: 1, words: 'zeros over older data' },
    { fill: '#f1f5f9', opacity: 1, words: 'nothing' },
  ];
  return entries.flatMap(({ fill, opacity, words }, index) => {
    const x = STRIP.x + index * 195;
    return [
      `<rect x="${x}" y="${y}" width="14" height="14" rx="2" fill="${fill}" opacity="${opacity}"/>`,
      text(x + 21, y + 12, words, 'font-size="12" fill="#64748b"'),
    ];
  });
}

function text(x: number, y: number, words: string, attributes: string): string {
  const escaped = words.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
  return `<text x="${x}" y="${y}" ${attributes}>${escaped}</text>`;
}

function short(words: string, length: number): string {
  return words.length <= length ? words : `${words.slice(0, length - 1)}…`;
}
