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
  type RequestListener,
  type ServerResponse,
} from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type AddressInfo, connect, createServer as createSocketServer } from 'node:net';
import path from 'node:path';
import type { ExecutionContext } from 'ava';
import { eventually } from '../helpers/eventually.js';
import { scratchDirectory } from '../helpers/scratch.js';

/** A key with a certificate for localhost that signs itself. */
export interface Certificate {
  key: string;
  certificate: string;
}

export function makeCertificate(directory: string): Certificate {
  const [key, certificate] = [
    path.join(directory, 'key.pem'),
    path.join(directory, 'certificate.pem'),
  ];
  const names = 'subjectAltName=DNS:localhost,IP:127.0.0.1';
  const words = [
    'req',
    '-x509',
    '-newkey',
    'rsa:2048',
    '-nodes',
    '-days',
    '2',
    '-subj',
    '/CN=localhost',
    '-addext',
    names,
  ];
  execFileSync('openssl', [...words, '-keyout', key, '-out', certificate], { stdio: 'ignore' });
  return { key, certificate };
}

export interface RegistryOptions {
  tls?: Certificate;
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
  { tls, basic, token }: RegistryOptions = {},
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
    tls === undefined ? '' : `  tls:\n    certificate: ${tls.certificate}\n    key: ${tls.key}\n`;
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

async function freePort(): Promise<number> {
  const server = createSocketServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function isOpen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => {
      resolve(false);
    });
  });
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
    const url = new URL(request.url ?? '', 'https://localhost');
    if (request.headers.authorization !== `Basic ${Buffer.from('me:secret').toString('base64')}`) {
      response.writeHead(401).end('{"errors":[{"message":"who are you?"}]}');
      return;
    }
    const scopes = url.searchParams.getAll('scope');
    onToken(scopes.join(' '));
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
    const text = `${base64({ typ: 'JWT', alg: 'RS256', x5c: [chain] })}.${base64(claims)}`;
    const signature = createSign('RSA-SHA256')
      .update(text)
      .sign(readFileSync(tls.key), 'base64url');
    response
      .writeHead(200, { 'content-type': 'application/json' })
      .end(JSON.stringify({ token: `${text}.${signature}` }));
  };
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
