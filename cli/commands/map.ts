import path from 'node:path';
import { type Command, Option } from 'commander';
import type { Extent } from '../../src/engine/index.js';
import { addNotes } from '../output/help.js';
import { withImage } from '../../src/images/with-image.js';
import { jsonLines, sayEach } from '../output/long-lists.js';
import { mapPicture } from '../output/map-picture.js';
import { put } from '../output/stdout.js';
import {
  besideOutput,
  type ProgressForm,
  progressOption,
  reported,
  withProgress,
} from '../output/progress.js';
import { findTarget } from '../find-image.js';

interface Options {
  output: 'human' | 'json' | 'svg';
  progress?: ProgressForm;
}

export function addMap(program: Command): void {
  const command = program
    .command('map')
    .summary('show where the data of an image is')
    .description(
      'Lists the extents of an image or of a snapshot, with the layer that holds each; or draws a picture of it.',
    )
    .argument('<image[@name]>', 'the image, or one of its snapshots')
    .addOption(
      new Option('--output <form>', 'a table, JSON as from “qemu-img map”, or a picture')
        .choices(['human', 'json', 'svg'])
        .default('human'),
    )
    .addOption(progressOption())
    .action(map);
  addNotes(command, {
    text: [
      'The table omits ranges that no layer holds. JSON covers the whole image, with the fields of ' +
        '“qemu-img map”: “depth” counts layers from 0, the requested one; “offset” is the offset in “file”; ' +
        '“snapshot” names the layer. The picture has a row for the content, and a row for each layer, in ' +
        'which data that newer layers hide is pale.',
    ],
    examples: [
      { command: 'pcow map vm1', does: 'of the present content' },
      { command: 'pcow map vm1@monday --output json', does: 'of a snapshot, as JSON' },
      { command: 'pcow map vm1 --output svg > vm1.svg', does: 'a picture of all layers' },
    ],
  });
}

async function map(given: string, { output, progress }: Options): Promise<void> {
  const { image: target, snapshot } = await findTarget(given);
  const form = output === 'svg' ? progress : besideOutput(progress);
  await withImage(target.file, {}, (image) =>
    withProgress(`map ${given}`, form, async (long) => {
      const layer = image.layerOf(snapshot);
      const chain = await image.chainState(layer);
      const extents = () => {
        const size = image.layers().find(({ id }) => id === layer)?.size ?? 0;
        // Both parts of the picture must use depths of the same layers.
        return reported(
          image.map({ snapshot: layer, chain, signal: long.signal }),
          size,
          long.onProgress,
        );
      };
      switch (output) {
        case 'human':
          await sayEach(lines(extents()));
          break;
        case 'json':
          await sayEach(jsonLines(members(extents())));
          break;
        case 'svg':
          put(await mapPicture(image, target.name, snapshot, long));
          break;
      }
    }),
  );
}

/** Columns have a fixed width, because a map may be too long for the memory. */
async function* lines(extents: AsyncIterable<Extent>): AsyncGenerator<string> {
  yield lineOf('offset', 'length', 'kind', 'place', 'layer');
  for await (const { offset, length, kind, place, layer } of extents) {
    if (layer !== null) {
      yield lineOf(hex(offset), hex(length), kind, place === null ? '' : hex(place), nameOf(layer));
    }
  }
}

function lineOf(
  offset: string,
  length: string,
  kind: string,
  place: string,
  layer: string,
): string {
  return `${offset.padStart(15)} ${length.padStart(13)}  ${kind.padEnd(4)} ${place.padStart(15)}  ${layer}\n`;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

function nameOf({ path: file, snapshot }: NonNullable<Extent['layer']>): string {
  return snapshot === null ? path.basename(file) : `${path.basename(file)}@${snapshot}`;
}

async function* members(extents: AsyncIterable<Extent>) {
  for await (const { offset, length, kind, depth, place, layer } of extents) {
    yield {
      start: offset,
      length,
      depth: depth ?? 0,
      present: kind !== 'hole',
      zero: kind !== 'data',
      data: kind === 'data',
      ...(place === null ? {} : { offset: place }),
      kind,
      file: layer?.path ?? null,
      snapshot: layer?.snapshot ?? null,
    };
  }
}
