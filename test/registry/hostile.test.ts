/**
 * Registries that lie, stop, or never stop: each pull ends with an error that names the registry,
 * in bounded time and memory, and no image is made. And those that only differ: ranges ignored,
 * blobs elsewhere, answers that fail at first.
 */
import './short-limit.js';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { compressed, Image, PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import { pcowProgram } from '../helpers/mounted.js';
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

/** Sends a few bytes twice a second, for ever: never silent, and never done. */
function trickle(response: ServerResponse): void {
  const timer = setInterval(() => response.write('x'.repeat(10)), 500);
  response.on('close', () => {
    clearInterval(timer);
  });
}

/** The bytes of the range that is asked for. */
function rangeOf({ request, bytes }: Asked): { part: Buffer; range: string; status: number } {
  const [, from, to] = /=(\d+)-(\d+)/.exec(request.headers.range ?? '') ?? [];
  if (from === undefined || to === undefined) return { part: bytes, range: '', status: 200 };
  const range = `bytes ${from}-${to}/${bytes.length}`;
  return { part: bytes.subarray(Number(from), Number(to) + 1), range, status: 206 };
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
    await refused(t, ready, answer, 'PCOW_CORRUPT', /sends more than|damaged/);
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
  await refused(t, ready, sending(' '.repeat(5 << 20)), 'PCOW_CORRUPT', /sends more than/);
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
    const error = await t.throwsAsync(
      pullImage(`oci:${layout}:v1`, at('copy')),
      { instanceOf: PcowError },
      name,
    );
    t.is(error.code, 'PCOW_CORRUPT', error.message);
    if (name !== 'bomb') continue;
    const { stderr, peak } = await peakOf(['pull', `oci:${layout}:v1`, at('copy')]);
    t.regex(stderr, /damaged: piece 0 in sha256:/);
    t.true(peak < 200 * MiB, `${peak} bytes`);
  }
});

test('ranges that are ignored: the image comes from whole answers', async (t) => {
  const { at, layout, data } = await prepared(t);
  let asked = 0;
  let broken = false;
  const answer = ({ digest, response, bytes }: Asked) => {
    response.writeHead(200, { 'content-length': bytes.length });
    if (digest === data) asked++;
    if (digest === data && broken)
      response.write(bytes.subarray(0, 7 * MiB), () => response.destroy());
    else response.end(bytes);
    if (digest === data) broken = false;
    return true;
  };
  const host = await startServer(t, layoutServer(layout, answer));
  await pullImage(`${host}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('source'), 's'], [at('copy'), 's']);
  t.is(asked, 1, 'and not one for each part');
  broken = true;
  await pullImage(`${host}/a:v1`, at('again'), PLAIN);
  await isSame(t, [at('source'), 's'], [at('again'), 's']);
  t.is(asked, 3, 'and one more if it breaks off');
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

test('each error names the image and the blob, and says what to do', async (t) => {
  const { at, layout, data } = await prepared(t);
  let changed = false;
  const host = await startServer(
    t,
    layoutServer(layout, (asked) => {
      if (asked.digest !== data) return false;
      // The blob changes between two requests for it.
      const wrong = Buffer.from(asked.bytes);
      if (changed) wrong.fill(7, 5 * MiB);
      changed = true;
      sendRange(asked.request, asked.response, wrong);
      return true;
    }),
  );
  const pulling = () => pullImage(`${host}/a:v1`, at('copy'), PLAIN);
  const { message, next } = await t.throwsAsync(pulling(), { instanceOf: PcowError });
  t.true(message.startsWith(`${host}/a:v1 is damaged: piece `), message);
  t.true(message.includes(data), message);
  t.regex(next ?? '', /pull it from elsewhere/);
  // What came before is kept, and goes on with a registry that is right again.
  const right = await startServer(t, layoutServer(layout));
  await pullImage(`${right}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('source'), 's'], [at('copy'), 's']);
});

test('lengths that are wrong: an error that says so, after some tries', async (t) => {
  const ready = await prepared(t);
  const lengths: ((asked: Asked, socket: Socket) => void)[] = [
    // More is promised than comes: the connection ends.
    (asked, socket) => {
      const { part } = rangeOf(asked);
      socket.write(`${head(asked, part.length + 10)}\r\n`);
      socket.end(part);
    },
    // Less is promised than comes: the rest is no answer.
    (asked, socket) => {
      const { part } = rangeOf(asked);
      socket.write(`${head(asked, part.length - 10)}\r\n`);
      socket.end(part);
    },
    (asked, socket) => {
      socket.end(`${head(asked, 5)}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n`);
    },
    (asked, socket) => {
      socket.end(`${head(asked, 5)}content-length: 6\r\n\r\nhello!`);
    },
    (asked, socket) => {
      socket.write(`${head(asked, 5)}x: ${'y'.repeat(1 << 20)}\r\n\r\nhello`);
    },
  ];
  function head(asked: Asked, length: number): string {
    const { range, status } = rangeOf(asked);
    const headers = `content-length: ${length}\r\n${range && `content-range: ${range}\r\n`}`;
    return `HTTP/1.1 ${status} OK\r\nconnection: close\r\n${headers}`;
  }
  await Promise.all(
    lengths.flatMap((send, number) =>
      (['manifest', 'blob'] as const).map((kind) => {
        const answer = (asked: Asked) => {
          if (asked.kind !== kind) return false;
          const { socket } = asked.response;
          socket?.on('error', () => undefined);
          if (socket !== null) send(asked, socket);
          return true;
        };
        // A short manifest is a wrong one.
        const text = number === 1 ? /damaged|no answer from/ : /no answer from/;
        return refusedAs(t, ready, `${kind}${number}`, answer, text);
      }),
    ),
  );
});

test('registries that say nothing, or trickle: bounded time', async (t) => {
  const ready = await prepared(t);
  const ways: ((asked: Asked) => void)[] = [
    () => undefined,
    ({ response }) => {
      response.writeHead(200);
      trickle(response);
    },
    (asked) => {
      const { part, range, status } = rangeOf(asked);
      asked.response.writeHead(status, { 'content-range': range, 'content-length': part.length });
      trickle(asked.response);
    },
    // An error whose message does not end.
    ({ response }) => {
      response.writeHead(503);
      trickle(response);
    },
    ({ response }) => {
      response.writeHead(404);
      endless(response);
    },
  ];
  const began = Date.now();
  await Promise.all(
    ways.flatMap((way, number) =>
      (['manifest', 'blob'] as const).map((kind) => {
        const answer = (asked: Asked) => {
          if (asked.kind !== kind) return false;
          way(asked);
          return true;
        };
        const text =
          number < 3 ? /no answer from .*about the (?:manifest|blob)/ : /HTTP (?:503|404)/;
        return refusedAs(t, ready, `${kind}${number}`, answer, text);
      }),
    ),
  );
  // Six tries with pauses of a second, each until a second without enough bytes is over.
  t.true(Date.now() - began < 120_000);
});

/** The same as refused(), for several at a time. */
async function refusedAs(
  t: ExecutionContext,
  { at, directory, layout }: Awaited<ReturnType<typeof prepared>>,
  name: string,
  answer: (asked: Asked) => boolean,
  text: RegExp,
): Promise<void> {
  const host = await startServer(t, layoutServer(layout, answer));
  const error = await t.throwsAsync(pullImage(`${host}/a:v1`, at(name), PLAIN), {
    instanceOf: PcowError,
  });
  t.true(['PCOW_IO', 'PCOW_CORRUPT', 'PCOW_NOT_FOUND'].includes(error.code), error.message);
  t.regex(error.message, text);
  t.not(error.next, undefined);
  t.false((await readdir(directory)).includes(`${name}.pcow`));
}

/** Runs a command as a user does. Returns the most memory that it had, in bytes. */
function peakOf(words: string[]): Promise<{ stderr: string; peak: number }> {
  const report = `import { writeSync } from 'node:fs';
    process.on('exit', () => writeSync(2, '\\npeak ' + process.resourceUsage().maxRSS));`;
  const argv = ['--import', `data:text/javascript,${encodeURIComponent(report)}`, pcowProgram];
  return new Promise((resolve) => {
    execFile(process.execPath, [...argv, ...words], (_, __, stderr) => {
      resolve({ stderr, peak: Number(/\npeak (\d+)$/.exec(stderr)?.[1]) * 1024 });
    });
  });
}

test('the memory of a pull is bounded, whatever the registry sends', async (t) => {
  const { at, layout, data } = await prepared(t);
  const pulling = async (name: string, answer: (asked: Asked) => boolean) => {
    const host = await startServer(t, layoutServer(layout, answer));
    return peakOf(['pull', `${host}/a:v1`, at(name), '--plain-http']);
  };
  const usual = await pulling('usual', () => false);
  t.notRegex(usual.stderr, /pcow:/);
  const manifest = (text: (list: string) => string) => (asked: Asked) => {
    if (asked.kind !== 'manifest') return false;
    asked.response.end(text(asked.bytes.toString()));
    return true;
  };
  const nested = '['.repeat(2_090_000) + ']'.repeat(2_090_000);
  for (const [name, most, answer] of [
    ['endless manifest', 160, (asked: Asked) => (endless(asked.response), true)],
    ['nested manifest', 400, manifest(() => nested)],
    [
      'endless blob',
      160,
      (asked: Asked) => {
        if (asked.digest !== data) return false;
        asked.response.writeHead(206, { 'content-range': rangeOf(asked).range });
        endless(asked.response);
        return true;
      },
    ],
  ] as const) {
    const { stderr, peak } = await pulling('copy', answer);
    t.regex(stderr, /^pcow: /, name);
    t.log(`${name}: ${Math.round((peak - usual.peak) / MiB)} MiB more than ${usual.peak / MiB}`);
    t.true(
      peak < usual.peak + most * MiB,
      `${name}: ${peak / MiB} MiB, usually ${usual.peak / MiB}`,
    );
  }
});
