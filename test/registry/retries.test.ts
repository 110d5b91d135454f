/**
 * A registry that limits requests, fails, or loses connections: Debian's, behind a front that does
 * so.
 */
import './short-limit.js';
import type { IncomingMessage, ServerResponse } from 'node:http';
import test from 'ava';
import { pullImage } from '../../src/registry/index.js';
import { pauseTold } from '../../src/registry/tries.js';
import { bench, isSame } from '../stream/images.js';
import { failure, golden, PLAIN, pushing } from './images.js';
import { frontOf, startRegistry, startServer } from './servers.js';

process.env.REGISTRY_AUTH_FILE = '/dev/null';

/** The kind of a request: it is the same for each try. */
function named({ method, url }: IncomingMessage): string {
  return `${method ?? ''} ${/\/(uploads|blobs|manifests)\//.exec(url ?? '')?.[1] ?? ''}`;
}

test('requests that are refused for now are sent again, not sooner than allowed', async (t) => {
  const { at } = await bench(t);
  const pauses: [number, number][] = [];
  const last = new Map<string, { count: number; at: number; pause: number }>();
  // The first request of each kind succeeds at the third try; a new upload begins at once.
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    if (request.method === 'POST') return false;
    const name = named(request);
    const { count, at: before, pause } = last.get(name) ?? { count: 0, at: 0, pause: 0 };
    if (count > 0 && count < 3 && request.method === 'GET')
      pauses.push([Date.now() - before, pause]);
    const [status, told] = (
      [
        [429, '1'],
        [503, new Date(Date.now() + 1000).toUTCString()],
      ] as const
    )[count] ?? [0, ''];
    last.set(name, { count: count + 1, at: Date.now(), pause: pauseTold(told) });
    if (status === 0) return false;
    // The body is read, as a registry does that is asked for something else than a blob.
    request.resume().on('end', () => response.writeHead(status, { 'retry-after': told }).end());
    return true;
  };
  const host = await startServer(t, frontOf(await startRegistry(t), answer));
  await golden(at('golden'));
  const { sent } = await pushing(at('golden'), 'v1', `${host}/a:v1`, PLAIN);
  t.true(sent > 2 ** 22);
  await pullImage(`${host}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);
  t.is(pauses.length, 4);
  // A date has no fractions of a second.
  for (const [waited, told] of pauses) t.true(waited >= told - 5, `${waited} of ${told} ms`);
});

test('a registry that fails for ever is given up, and named', async (t) => {
  const { at } = await bench(t);
  const pulling = async (status: number, headers: Record<string, string>) => {
    let asked = 0;
    const host = await startServer(t, (_, response) => {
      asked++;
      response.writeHead(status, headers).end('{"errors":[{"message":"too many"}]}');
    });
    const code = status === 429 ? 'PCOW_BUSY' : 'PCOW_IO';
    const error = await failure(
      t,
      pullImage(`${host}/a:v1`, at('copy'), PLAIN),
      code,
      new RegExp(`^${host} .*HTTP ${status}, too many`),
    );
    return { asked, next: error.next ?? '', message: error.message };
  };
  const [gone, limited, late] = await Promise.all([
    pulling(502, {}),
    pulling(429, { 'retry-after': '0' }),
    pulling(429, { 'retry-after': '3600' }),
  ]);
  t.is(gone.asked, 6);
  t.regex(gone.message, /fails on the manifest of localhost:\d+\/a:v1/);
  t.is(limited.asked, 6);
  t.is(late.asked, 1, 'it is not asked again if it wants to have an hour');
  t.regex(late.next, /wait 3600 seconds/);
});

test('an upload that breaks off is begun again, and what has arrived is not sent', async (t) => {
  const { at } = await bench(t);
  const uploads: string[] = [];
  let broken = 0;
  const answer = (request: IncomingMessage) => {
    if (request.method === 'POST') uploads.push(named(request));
    if (request.method !== 'PUT' || broken === 3) return false;
    // In the middle of the large blob, when the registry has a part of it.
    let length = 0;
    request.on('data', (chunk: Buffer) => {
      length += chunk.length;
      if (length < 2 ** 21 || request.destroyed) return;
      broken++;
      request.destroy();
    });
    return false;
  };
  const host = await startServer(t, frontOf(await startRegistry(t), answer));
  await golden(at('golden'));
  await pushing(at('golden'), 'v1', `${host}/a:v1`, PLAIN);
  t.is(broken, 3);
  t.is(uploads.length, 3 + 3, 'index, data and config; the data four times');
  await pullImage(`${host}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);
});

test('Retry-After is a number of seconds, or a date', (t) => {
  t.is(pauseTold('7'), 7000);
  const later = pauseTold(new Date(Date.now() + 60_000).toUTCString());
  t.true(later > 50_000 && later <= 60_000, String(later));
  for (const text of [undefined, '', '-1', 'soon', new Date(0).toUTCString(), ['1']])
    t.is(pauseTold(text), 0, String(text));
});
