/** What the tests of lazy images have in common. */
import { randomBytes } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { PIECE } from '../../src/registry/piece-index.js';
import { MiB, working } from '../stream/images.js';
import { PLAIN, pushing } from './images.js';
import { frontOf, startServer } from './servers.js';

/** Each piece of the lowest layer has other bytes, which do not compress. */
export const PIECES = 32;

export async function pushedWhole(file: string, reference: string, layers = 1): Promise<string> {
  await Image.create(file, { size: 64 * MiB });
  await working(file, async (image) => {
    await image.write(randomBytes(PIECES * PIECE), 0);
    await image.snapshot('v1');
    for (let layer = 2; layer <= layers; layer++) {
      await image.write(randomBytes(12 * 4096), layer * MiB + 8192);
      await image.discard((layer + 4) * MiB, MiB / 2 + 4096);
      await image.snapshot(`v${layer}`);
    }
  });
  return (await pushing(file, `v${layers}`, reference, PLAIN)).digest;
}

/** A front of a registry that counts what is asked of its blobs, and can do harm. */
export async function countingFront(t: ExecutionContext, host: string) {
  const seen = {
    ranges: [] as string[],
    bytes: 0,
    harm: null as ((request: IncomingMessage, response: ServerResponse) => boolean) | null,
    host: '',
  };
  seen.host = await startServer(
    t,
    frontOf(host, (request, response) => {
      if (seen.harm?.(request, response) === true) return true;
      const { range } = request.headers;
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range ?? '') ?? [];
      if (from === undefined || to === undefined) return false;
      // Small blobs are read whole; they begin at 0 as well, but with their own digests.
      seen.ranges.push(`${from}-${to}`);
      seen.bytes += Number(to) - Number(from) + 1;
      return false;
    }),
  );
  return seen;
}
