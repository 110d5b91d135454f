/**
 * Ctrl-C during push and pull, of the programs as a user runs them, with Debian's registry: they
 * end at once, and the next run moves only what is missing.
 */
import { randomBytes } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { bench, isSame, MiB, working } from '../stream/images.js';
import { start } from '../cli/interruptions.js';
import { frontOf, startRegistry, startServer } from './servers.js';

/** Bytes of the second layer: more than twice of what a pull fetches at the same time. */
const LARGE = 40 * MiB;

process.env.REGISTRY_AUTH_FILE = '/dev/null';

test('after Ctrl-C, a push and a pull go on where they stopped', async (t) => {
  const { at, directory } = await bench(t);
  await Image.create(at('golden'), { size: 128 * MiB });
  await working(at('golden'), async (image) => {
    await image.write(randomBytes(4 * MiB), 0);
    await image.snapshot('v1');
    await image.write(randomBytes(LARGE), 64 * MiB);
    await image.snapshot('v2');
  });
  // While `holding`, no more than a part of the large blob passes, in both directions. The signal
  // is sent when that part and all of the other layer have passed.
  const link = { holding: false, sent: 0, fetched: 0, stored: 0, held: false };
  let stop = () => undefined as unknown;
  const host = await startServer(
    t,
    frontOf(await startRegistry(t), (request, response) => {
      let length = 0;
      const hold = (isLarge: boolean) => {
        link.held ||= link.holding && isLarge;
        if (link.held && (link.stored > 4 * MiB || request.method === 'GET')) stop();
        return link.held;
      };
      request.on('data', (chunk: Buffer) => {
        length += chunk.length;
        link.sent += chunk.length;
        const isLarge = Number(request.headers['content-length']) >= LARGE;
        if (hold(isLarge && length > 4 * MiB)) request.unpipe();
      });
      response.on('finish', () => {
        if (request.method === 'PUT') link.stored += length;
        hold(false);
      });
      const write = response.write.bind(response) as (chunk: Buffer) => boolean;
      response.write = (chunk: Buffer) => {
        link.fetched += chunk.length;
        return hold(request.method === 'GET' && link.fetched > LARGE) || write(chunk);
      };
      return false;
    }),
  );
  const running = async (words: string[], holding: boolean) => {
    Object.assign(link, { holding, sent: 0, fetched: 0, stored: 0, held: false });
    const { child, ended } = await start(directory, { words });
    stop = () => {
      if (!child.killed) child.kill('SIGINT'); // twice would end it at once
    };
    const { code, signal, stderr } = await ended;
    t.deepEqual([code, signal], [holding ? 130 : 0, null], stderr);
    return stderr;
  };
  const named = async (name: RegExp) => (await readdir(directory)).filter((it) => name.test(it));
  const push = ['push', 'golden@v2', `${host}/a:v2`, '--plain-http'];
  const pull = ['pull', `${host}/a:v2`, 'copy', '--plain-http'];

  t.regex(await running(push, true), /stopped/);
  await running(push, false);
  t.true(link.sent > LARGE && link.sent < LARGE + MiB, `${link.sent} bytes were sent again`);

  t.regex(await running(pull, true), /stopped[^]*kept/);
  t.deepEqual(await named(/^copy/), []);
  await running(pull, false);
  // What was under way, and what the receiver had not got yet.
  t.true(link.fetched < LARGE, `${link.fetched} bytes were fetched again`);
  for (const name of ['v1', 'v2']) await isSame(t, [at('golden'), name], [at('copy'), name]);
  t.deepEqual(await named(/^\./), []);
});
