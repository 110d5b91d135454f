/**
 * Servers for tests of push and pull: Debian's registry, a token server, and a registry made of an
 * OCI layout.
 */
import { execFileSync, spawn } from 'node:child_process';
import { createSign, X509Certificate } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
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
import { text } from 'node:stream/consumers';
import type { ExecutionContext } from 'ava';
import { freePort, isOpen } from '../../scripts/ports.js';
import { eventually } from '../helpers/eventually.js';
import { scratchDirectory } from '../helpers/scratch.js';

/** The name of a server that only proxies know. */
export const FAR = 'registry.test';

/** A key with a certificate for localhost and FAR that signs itself. */
export interface Certificate {
  key: string;
  certificate: string;
}

export function makeCertificate(directory: string, name = 'server'): Certificate {
  const [key, certificate] = [
    path.join(directory, `${name}.key`),
    path.join(directory, `${name}.cert`),
  ];
  const names = `subjectAltName=DNS:localhost,DNS:${FAR},IP:127.0.0.1`;
  const words = [
    'req',
    '-x509',
    '-newkey',
    'rsa:2048',
    '-nodes',
    '-days',
    '2',
    '-subj',
    `/CN=${name}`,
    '-addext',
    names,
  ];
  execFileSync('openssl', [...words, '-keyout', key, '-out', certificate], { stdio: 'ignore' });
  return { key, certificate };
}

export interface RegistryOptions {
  tls?: Certificate;
  /** Only clients with a certificate of this authority. */
  clients?: Certificate;
  /** Of the user `me` with the password `secret`. */
  basic?: boolean;
  /** Tokens of this server. */
  token?: { realm: string; certificate: string };
}

/** crypt(3) of `secret`. */
const PASSWORD = '$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a';

/** Returns its HOST:PORT. It ends with the test. */
export async function startRegistry(
  t: ExecutionContext,
  { tls, clients, basic, token }: RegistryOptions = {},
): Promise<string> {
  const directory = await scratchDirectory(t);
  const port = await freePort();
  const file = path.join(directory, 'config.yml');
  const auth =
    basic === true
      ? `auth:\n  htpasswd:\n    realm: test\n    path: ${directory}/htpasswd\n`
      : token === undefined
        ? ''
        : `auth:\n  token:\n    realm: ${token.realm}\n    service: test\n    issuer: tests\n    rootcertbundle: ${token.certificate}\n`;
  const certificates =
    (tls === undefined
      ? ''
      : `  tls:\n    certificate: ${tls.certificate}\n    key: ${tls.key}\n`) +
    (clients === undefined ? '' : `    clientcas:\n      - ${clients.certificate}\n`);
  writeFileSync(path.join(directory, 'htpasswd'), `me:${PASSWORD}\n`);
  mkdirSync(path.join(directory, 'data'));
  writeFileSync(
    file,
    `version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: ${directory}/data\n  delete:\n    enabled: true\n` +
      `http:\n  addr: 127.0.0.1:${port}\n  secret: tests\n${certificates}${auth}`,
  );
  // It takes variables such as REGISTRY_AUTH_FILE for its own configuration.
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('REGISTRY_')),
  );
  const child = spawn('docker-registry', ['serve', file], { stdio: 'ignore', env });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  t.teardown(async () => {
    child.kill();
    await ended;
  });
  await eventually(() => isOpen(port));
  return `localhost:${port}`;
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

/** The token that a token server takes instead of the password. */
export const IDENTITY_TOKEN = 'an-identity-token';

/**
 * The answers of a token server that lets `me` with the password `secret` do everything. `seconds`:
 * how long a token lasts.
 */
export function tokenServer(
  tls: Certificate,
  onToken: (scope: string) => void,
  seconds = 300,
): RequestListener {
  const chain = new X509Certificate(readFileSync(tls.certificate)).raw.toString('base64');
  const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
  return (request, response) => {
    void asked(request).then((scopes) => {
      if (scopes === null) {
        response.writeHead(401).end('{"errors":[{"message":"who are you?"}]}');
        return;
      }
      onToken(scopes.join(' '));
      response
        .writeHead(200, { 'content-type': 'application/json' })
        .end(JSON.stringify({ token: tokenFor(scopes) }));
    });
  };

  /** null: without the right credentials. */
  async function asked(request: IncomingMessage): Promise<string[] | null> {
    if (request.method === 'POST') {
      const form = new URLSearchParams(await text(request));
      const right =
        form.get('grant_type') === 'refresh_token' && form.get('refresh_token') === IDENTITY_TOKEN;
      return right ? (form.get('scope')?.split(' ') ?? []) : null;
    }
    const user = `Basic ${Buffer.from('me:secret').toString('base64')}`;
    const url = new URL(request.url ?? '', 'https://localhost');
    return request.headers.authorization === user ? url.searchParams.getAll('scope') : null;
  }

  function tokenFor(scopes: string[]): string {
    const access = scopes.map((scope) => {
      const [type, name, actions = ''] = scope.split(':');
      return { type, name, actions: actions.split(',') };
    });
    const now = Math.floor(Date.now() / 1000);
    // The registry allows a minute of difference between clocks.
    const claims = {
      iss: 'tests',
      sub: 'me',
      aud: 'test',
      exp: now + seconds - 60,
      nbf: now - 600,
      iat: now,
      jti: '1',
      access,
    };
    const signed = `${base64({ typ: 'JWT', alg: 'RS256', x5c: [chain] })}.${base64(claims)}`;
    const signature = createSign('RSA-SHA256')
      .update(signed)
      .sign(readFileSync(tls.key), 'base64url');
    return `${signed}.${signature}`;
  }
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
