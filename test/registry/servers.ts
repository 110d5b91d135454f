/**
 * Servers for tests of push and pull: Debian's registry, fronts and proxies, and a registry made of
 * an OCI layout.
 */
import { readFileSync } from 'node:fs';
import {
  createServer,
  type IncomingMessage,
  request as ask,
  type RequestListener,
  type ServerResponse,
} from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type AddressInfo, connect, type Socket } from 'node:net';
import path from 'node:path';
import type { ExecutionContext } from 'ava';
import { type Certificate, selfSigned } from '../../scripts/registry/certificate.js';
import { Registry, type RegistryOptions } from '../../scripts/registry/debian.js';
import { scratchDirectory } from '../helpers/scratch.js';

/** The name of a server that only proxies know. */
export const FAR = 'registry.test';

/** A certificate for localhost and FAR. */
export function makeCertificate(directory: string, name = 'server'): Certificate {
  return selfSigned(directory, name, `DNS:localhost,DNS:${FAR},IP:127.0.0.1`);
}

/** Returns its HOST:PORT. It ends with the test. */
export async function startRegistry(
  t: ExecutionContext,
  options: RegistryOptions = {},
): Promise<string> {
  const registry = await Registry.make(await scratchDirectory(t), options);
  t.teardown(() => registry.stop('SIGTERM'));
  await registry.start();
  return registry.host;
}

/** A server on this machine; it ends with the test, whatever its connections do. */
export async function startServer(
  t: ExecutionContext,
  answer: RequestListener,
  tls?: Certificate,
): Promise<string> {
  const server =
    tls === undefined
      ? createServer(answer)
      : createTlsServer(
          { key: readFileSync(tls.key), cert: readFileSync(tls.certificate) },
          answer,
        );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return `localhost:${(server.address() as AddressInfo).port}`;
}

/**
 * The answers of a server in front of another one. `answer` may answer instead, and returns true
 * then.
 */
export function frontOf(
  host: string,
  answer: (request: IncomingMessage, response: ServerResponse) => boolean = () => false,
): RequestListener {
  return (request, response) => {
    if (answer(request, response)) return;
    const { pathname, search } = new URL(request.url ?? '', 'http://localhost');
    const { method, headers } = request;
    const port = host.split(':')[1];
    const passed = ask({ port, method, headers, path: pathname + search }, (got) => {
      response.writeHead(got.statusCode ?? 502, got.headers);
      got.pipe(response);
    });
    passed.on('error', () => response.destroy());
    // A client that goes away breaks its request off behind the front, too.
    response.on('close', () => passed.destroy());
    request.pipe(passed);
  };
}

/**
 * A proxy that knows the servers by these names (HOST:PORT), for `me` with the password `secret`.
 * `asked`: its requests.
 */
export async function startProxy(
  t: ExecutionContext,
  servers: Record<string, string>,
): Promise<{ host: string; asked: string[] }> {
  const asked: string[] = [];
  const allowed = ({ headers, method, url }: IncomingMessage) => {
    asked.push(`${method ?? ''} ${url ?? ''}`);
    const user = Buffer.from('me:secret').toString('base64');
    return headers['proxy-authorization'] === `Basic ${user}`;
  };
  const server = createServer((request, response) => {
    const target = servers[`${new URL(request.url ?? '').hostname}:80`];
    if (!allowed(request)) response.writeHead(407).end();
    else if (target === undefined) response.writeHead(502).end();
    else frontOf(target)(request, response);
  });
  const open = new Set<Socket>();
  server.on('connection', (socket) => open.add(socket));
  server.on('connect', (request, socket: Socket) => {
    socket.on('error', () => undefined);
    const target = servers[request.url ?? ''];
    if (!allowed(request)) {
      socket.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
    } else if (target === undefined) {
      socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n');
    } else {
      const there = connect(Number(target.split(':')[1]), '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n');
        socket.pipe(there).pipe(socket);
      });
      open.add(there);
      there.on('error', () => socket.destroy());
      socket.on('close', () => there.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return { host: `localhost:${(server.address() as AddressInfo).port}`, asked };
}

/** What a registry that serves an OCI layout is asked for. */
export interface Asked {
  kind: 'manifest' | 'blob';
  digest: string;
  request: IncomingMessage;
  response: ServerResponse;
  bytes: Buffer;
}

/**
 * A registry that serves a layout, read only. `answer` may answer otherwise, and returns true then.
 */
export function layoutServer(
  directory: string,
  answer: (asked: Asked) => boolean = () => false,
): RequestListener {
  return (request, response) => {
    const [, kind, name = ''] = /^\/v2\/.*\/(manifest|blob)s\/(.+)$/.exec(request.url ?? '') ?? [];
    const index = JSON.parse(readFileSync(path.join(directory, 'index.json'), 'utf8')) as {
      manifests: { digest: string }[];
    };
    const digest = name.startsWith('sha256:') ? name : (index.manifests[0]?.digest ?? '');
    const bytes = readFileSync(
      path.join(directory, 'blobs', 'sha256', digest.slice('sha256:'.length)),
    );
    if (answer({ kind: kind as Asked['kind'], digest, request, response, bytes })) return;
    sendRange(request, response, bytes);
  };
}

export function sendRange(request: IncomingMessage, response: ServerResponse, bytes: Buffer): void {
  const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
  if (from === undefined || to === undefined) {
    response.writeHead(200, { 'content-length': bytes.length }).end(bytes);
    return;
  }
  const part = bytes.subarray(Number(from), Number(to) + 1);
  const range = `bytes ${from}-${to}/${bytes.length}`;
  response.writeHead(206, { 'content-length': part.length, 'content-range': range }).end(part);
}
