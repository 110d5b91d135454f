/**
 * Registries that lie, stop, or never stop: each pull ends with an error that names the registry,
 * in bounded time and memory, and no image is made. And those that only differ: ranges ignored,
 * blobs elsewhere, answers that fail at first.
 */
import { randomBytes } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { compressed, Image, PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import { LayoutStore } from '../../src/registry/layout.js';
import { blobOf, encodeConfig, encodeManifest } from '../../src/registry/manifest.js';
import { pullImage, pushImage } from '../../src/registry/index.js';
import { IndexBuilder } from '../../src/registry/piece-index.js';
import { sha256 } from '../../src/registry/digest.js';
import { type LayoutReference, parseReference } from '../../src/registry/reference.js';
import { bench, isSame, MiB, reading, working } from '../stream/images.js';
import { type Asked, layoutServer, sendRange, startServer } from './servers.js';

const PLAIN = { plainHttp: true };
process.env.REGISTRY_AUTH_FILE = '/dev/null';

/** A layout with one image of some MiB, and the image. */
async function prepared(t: ExecutionContext) {
  const { at, directory } = await bench(t);
  await Image.create(at('source'), { size: 64 * MiB });
  await working(at('source'), async (image) => {
    await image.write(randomBytes(12 * MiB), MiB);
    await image.snapshot('s');
  });
  const layout = path.join(directory, 'layout');
  await reading(at('source'), (image) => pushImage(image, 's', `oci:${layout}:v1`));
  const largest = async () => {
    const { layers } = JSON.parse(
      String(
        await new LayoutStore(parseReference(`oci:${layout}`) as LayoutReference).readManifest(),
      ),
    ) as {
      layers: { digest: string; mediaType: string }[];
    };
    return layers.find(({ mediaType }) => mediaType.includes('data'))?.digest ?? '';
  };
  return { at, directory, layout, data: await largest() };
}

async function refused(
  t: ExecutionContext,
  { at, directory, layout }: Awaited<ReturnType<typeof prepared>>,
  answer: (asked: Asked) => boolean,
  code: PcowErrorCode,
  text: RegExp,
): Promise<void> {
  const host = await startServer(t, layoutServer(layout, answer));
  const error = await t.throwsAsync(pullImage(`${host}/a:v1`, at('copy'), PLAIN), {
    instanceOf: PcowError,
  });
  t.is(error.code, code, error.message);
  t.regex(error.message, text);
  t.false((await readdir(directory)).includes('copy.pcow'));
}

/** Never ends, as fast as its reader takes it. */
function endless(response: ServerResponse): void {
  const chunk = randomBytes(1 << 16);
  const more = () => {
    while (!response.destroyed && response.write(chunk));
  };
  response.on('drain', more);
  more();
}

test('wrong bytes, under the right digest', async (t) => {
  const ready = await prepared(t);
  for (const kind of ['manifest', 'blob'] as const) {
    const answer = (asked: Asked) => {
      if (asked.kind !== kind) return false;
      const wrong = Buffer.from(asked.bytes);
      wrong[wrong.length >> 1]! ^= 1;
      sendRange(asked.request, asked.response, wrong);
      return true;
    };
    await refused(t, ready, answer, 'PCOW_CORRUPT', /damaged/);
  }
});

test('bodies that never end, and that are longer than they say', async (t) => {
  const ready = await prepared(t);
  for (const kind of ['manifest', 'blob'] as const) {
    const answer = (asked: Asked) => {
      if (asked.kind !== kind) return false;
      const { range } = asked.request.headers;
      const [, from = '0', to = '0'] = /=(\d+)-(\d+)/.exec(range ?? '') ?? [];
      asked.response.writeHead(range === undefined ? 200 : 206, {
        'content-range': `bytes ${from}-${to}/99`,
      });
      endless(asked.response);
      return true;
    };
    await refused(t, ready, answer, 'PCOW_CORRUPT', /more than was asked for|damaged/);
  }
});

test('redirects in a circle, and to other protocols', async (t) => {
  const ready = await prepared(t);
  const to = (location: string) => (asked: Asked) => {
    asked.response
      .writeHead(307, { location: location === '' ? (asked.request.url ?? '') : location })
      .end();
    return true;
  };
  await refused(t, ready, to(''), 'PCOW_IO', /redirects more than/);
  await refused(t, ready, to('file:///etc/passwd'), 'PCOW_PERMISSION', /not allowed/);
  await refused(t, ready, to('http://user:password@localhost/'), 'PCOW_PERMISSION', /not allowed/);
  await refused(t, ready, to('http://['), 'PCOW_IO', /without a valid address/);
});

test('manifests that are huge, or are something else', async (t) => {
  const ready = await prepared(t);
  const sending = (text: string) => (asked: Asked) => {
    if (asked.kind !== 'manifest') return false;
    asked.response.writeHead(200).end(text);
    return true;
  };
  await refused(t, ready, sending(' '.repeat(5 << 20)), 'PCOW_CORRUPT', /more than was asked for/);
  await refused(t, ready, sending('{'), 'PCOW_CORRUPT', /not/);
  await refused(t, ready, sending('[]'), 'PCOW_NOT_AN_IMAGE', /something else/);
  const config = {
    mediaType: 'application/vnd.oci.image.config.v1+json',
    digest: `sha256:${'0'.repeat(64)}`,
    size: 2,
  };
  await refused(
    t,
    ready,
    sending(JSON.stringify({ schemaVersion: 2, config, layers: [] })),
    'PCOW_NOT_AN_IMAGE',
    /something else/,
  );
  const own = { ...config, mediaType: 'application/vnd.pcow.image.config.v1+json', size: 1e12 };
  await refused(
    t,
    ready,
    sending(JSON.stringify({ schemaVersion: 2, config: own, layers: [] })),
    'PCOW_CORRUPT',
    /out of range/,
  );
});

test('frames that become more than their index says', async (t) => {
  const { at, directory } = await bench(t);
  const bomb = await compressed(Buffer.alloc(256 * MiB), 3);
  for (const [name, frame] of [
    ['bomb', bomb],
    [
      'two frames',
      Buffer.concat([
        await compressed(Buffer.alloc(2048, 1), 3),
        await compressed(Buffer.alloc(2048, 1), 3),
      ]),
    ],
    ['noise', randomBytes(500)],
  ] as const) {
    const layout = path.join(directory, name);
    const store = new LayoutStore(parseReference(`oci:${layout}:v1`) as LayoutReference);
    const builder = new IndexBuilder();
    builder.add({
      number: 0,
      data: 1n,
      zero: 0n,
      stored: frame.length,
      digest: sha256(frame),
      content: sha256(Buffer.alloc(4096)),
    });
    const index = builder.finish(MiB);
    const snapshot = {
      name: 's',
      identity: '00000000000000aa',
      created: '2026-01-01T00:00:00.000Z',
    };
    const layer = { snapshot, size: MiB, bytes: 4096, index: blobOf(index), data: blobOf(frame) };
    const config = encodeConfig({ blockSize: 65536, layers: [layer] });
    for (const bytes of [index, frame, config]) {
      await store.writeBlob(blobOf(bytes), () => [bytes] as unknown as AsyncIterable<Uint8Array>);
    }
    await store.writeManifest(encodeManifest(config, { blockSize: 65536, layers: [layer] }));
    const before = process.memoryUsage().rss;
    const error = await t.throwsAsync(
      pullImage(`oci:${layout}:v1`, at('copy')),
      { instanceOf: PcowError },
      name,
    );
    t.is(error.code, 'PCOW_CORRUPT', error.message);
    t.true(process.memoryUsage().rss - before < 100 * MiB, name);
  }
});

test('ranges that are ignored: the image comes from whole answers', async (t) => {
  const { at, layout, data } = await prepared(t);
  let asked = 0;
  const answer = ({ digest, response, bytes }: Asked) => {
    if (digest === data) asked++;
    response.writeHead(200, { 'content-length': bytes.length }).end(bytes);
    return true;
  };
  const host = await startServer(t, layoutServer(layout, answer));
  await pullImage(`${host}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('source'), 's'], [at('copy'), 's']);
  t.is(asked, 1, 'and not one for each part');
});

test('answers that break off or fail at first: the pull goes on', async (t) => {
  const { at, layout } = await prepared(t);
  const seen = new Set<string>();
  const answer = ({ request, response, bytes }: Asked) => {
    const what = `${request.url ?? ''} ${request.headers.range ?? ''}`;
    if (seen.has(what)) return false;
    seen.add(what);
    if (seen.size % 2 === 0) response.writeHead(503).end('later');
    else if (seen.size % 3 === 0) response.writeHead(429, { 'retry-after': '0' }).end();
    else if (request.headers.range === undefined) response.destroy();
    else {
      const [, from = '0', to = '0'] = /=(\d+)-(\d+)/.exec(request.headers.range) ?? [];
      response.writeHead(206, { 'content-range': `bytes ${from}-${to}/${bytes.length}` });
      response.write(bytes.subarray(Number(from), Number(from) + 1000), () => response.destroy());
    }
    return true;
  };
  const host = await startServer(t, layoutServer(layout, answer));
  await pullImage(`${host}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('source'), 's'], [at('copy'), 's']);
});

test('blobs on another host are fetched without the credentials of the registry', async (t) => {
  const { at, layout } = await prepared(t);
  const seen: (string | undefined)[] = [];
  const storage = await startServer(t, (request, response) => {
    seen.push(request.headers.authorization);
    layoutServer(layout)(request, response);
  });
  const host = await startServer(t, (request, response) => {
    const realm = `http://${String(request.headers.host)}/token`;
    response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="s"` }).end();
  });
  // A token for everybody, from a server of its own.
  const tokens = await startServer(t, (request, response) => {
    if (request.url?.startsWith('/token') === true) response.end('{"token":"abc"}');
    else response.writeHead(404).end();
  });
  const front = await startServer(t, (request, response) => {
    if (request.headers.authorization === undefined) {
      response
        .writeHead(401, { 'www-authenticate': `Bearer realm="http://${tokens}/token",service="s"` })
        .end();
      return;
    }
    t.is(request.headers.authorization, 'Bearer abc');
    layoutServer(layout, ({ kind, response: answer }) => {
      if (kind === 'manifest') return false;
      answer.writeHead(307, { location: `http://${storage}${request.url ?? ''}` }).end();
      return true;
    })(request, response);
  });
  await pullImage(`${front}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('source'), 's'], [at('copy'), 's']);
  t.true(seen.length > 2);
  t.true(seen.every((header) => header === undefined));
  // A token server that itself wants a token gives an error, and no loop.
  const error = await t.throwsAsync(pullImage(`${host}/a:v1`, at('other'), PLAIN), {
    instanceOf: PcowError,
  });
  t.is(error.code, 'PCOW_PERMISSION');
});

test('a pull that is stopped ends at once, also when the registry says nothing', async (t) => {
  const { at, layout, directory } = await prepared(t);
  const stop = new AbortController();
  const host = await startServer(
    t,
    layoutServer(layout, ({ kind }) => {
      if (kind === 'blob') stop.abort();
      return kind === 'blob';
    }),
  );
  const error = await t.throwsAsync(
    pullImage(`${host}/a:v1`, at('copy'), { ...PLAIN, signal: stop.signal }),
    {
      instanceOf: PcowError,
    },
  );
  t.is(error.code, 'PCOW_CANCELLED');
  t.deepEqual((await readdir(directory)).sort(), ['layout', 'source.pcow']);
});
