/**
 * Requests to a registry: retried with growing pauses, redirected without credentials, limited in
 * bytes and in time. Whatever the other side sends, memory and time are bounded.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { rootCertificates } from 'node:tls';
import createDebug from 'debug';
import type { Dispatcher } from 'undici';
import { isPcowError, PcowError } from '../engine/index.js';
import { cancelled } from './store.js';

const debug = createDebug('pcow:registry');

/** Milliseconds without a byte, in either direction. */
const SILENCE = 60_000;
/**
 * Bytes per second that a transfer must reach in addition to SILENCE, so that it cannot trickle for
 * ever.
 */
const SLOWEST = 16 << 10;
const TRIES = 6;
/** Milliseconds before the second try; doubled before each further one. */
const PAUSE = 200;
const LONGEST_PAUSE = 60_000;
const MOST_REDIRECTS = 5;
const REDIRECTS = [301, 302, 303, 307, 308];
/** Answers after which the same request may succeed. */
const TEMPORARY = [408, 429, 500, 502, 503, 504];
/** Bytes that are read of an answer's error message. */
const LONGEST_MESSAGE = 64 << 10;

export interface HttpOptions {
  /** Files with certificates to trust, besides those of the system. */
  certificates?: readonly string[] | undefined;
  /** Use HTTP, and follow redirects to it. */
  plainHttp?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface HttpRequest {
  method: 'GET' | 'HEAD' | 'POST' | 'PUT';
  url: URL;
  headers?: Record<string, string> | undefined;
  /** Called again for each try. */
  body?: (() => AsyncIterable<Uint8Array>) | undefined;
  /** Bytes of the body. */
  length?: number | undefined;
  /** Added to the request, but never sent to another host. */
  authorization?:
    ((challenge: string | null, used: string | null) => Promise<string | null>) | undefined;
  /** Bytes that the answer may take: decides how long it may take. */
  expected?: number | undefined;
}

export interface HttpAnswer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  /** After redirects. */
  url: URL;
  body: Dispatcher.ResponseData['body'];
}

export class Http {
  #dispatcher: Promise<Dispatcher> | undefined;

  constructor(private readonly options: HttpOptions) {}

  get plain(): boolean {
    return this.options.plainHttp === true;
  }

  /** The answer, whatever its status; temporary failures are retried first. */
  async request(request: HttpRequest): Promise<HttpAnswer> {
    const { signal } = this.options;
    for (let tried = 1; ; tried++) {
      let pause = Math.min(LONGEST_PAUSE, PAUSE * 2 ** tried) * (0.5 + Math.random());
      try {
        const answer = await this.#withRedirects(request);
        if (tried === TRIES || !TEMPORARY.includes(answer.status)) return answer;
        pause = Math.max(pause, waitTold(answer.headers['retry-after']));
        await skip(answer);
        debug('%s %s: %d, try %d', request.method, request.url.host, answer.status, tried);
      } catch (error) {
        if (signal?.aborted) throw cancelled('the transfer', signal);
        if (isPcowError(error) || !(error instanceof Error)) throw error;
        if (tried === TRIES || !mayPass(error)) throw unreachable(request.url, error);
        debug('%s %s: %s, try %d', request.method, request.url.host, error.message, tried);
      }
      await sleep(pause, undefined, { signal }).catch(() => {
        throw cancelled('the transfer', signal!);
      });
    }
  }

  async close(): Promise<void> {
    await (await this.#dispatcher)?.destroy();
  }

  async #withRedirects(request: HttpRequest): Promise<HttpAnswer> {
    let { url } = request;
    let challenge: string | null = null;
    let used: string | null = null;
    for (let step = 0; step <= MOST_REDIRECTS; step++) {
      used =
        url.origin === request.url.origin
          ? ((await request.authorization?.(challenge, used)) ?? null)
          : null;
      const answer = await this.#send(request, url, used);
      if (REDIRECTS.includes(answer.status) && request.body === undefined) {
        await skip(answer);
        url = this.#target(url, answer.headers.location);
        continue;
      }
      const asked = answer.headers['www-authenticate'];
      // Only once: the header that was sent is wrong, or has expired.
      if (
        answer.status === 401 &&
        challenge === null &&
        request.authorization !== undefined &&
        url.origin === request.url.origin
      ) {
        await skip(answer);
        challenge = Array.isArray(asked) ? asked.join(', ') : (asked ?? '');
        continue;
      }
      return answer;
    }
    throw new PcowError(
      'PCOW_IO',
      `${request.url.host} redirects more than ${MOST_REDIRECTS} times`,
      { next: null },
    );
  }

  #target(from: URL, location: string | string[] | undefined): URL {
    let url: URL;
    try {
      url = new URL(String(location), from);
    } catch {
      throw new PcowError('PCOW_IO', `${from.host} redirects without a valid address`, {
        next: null,
      });
    }
    this.check(url, from);
    return url;
  }

  /**
   * Refuses addresses to which a registry must not redirect: other protocols, and http unless it
   * was requested.
   */
  check(url: URL, from: URL): void {
    const allowed = url.protocol === 'https:' || (url.protocol === 'http:' && this.plain);
    if (allowed && url.username === '' && url.password === '') return;
    throw new PcowError(
      'PCOW_PERMISSION',
      `${from.host} redirects to an address that is not allowed: ${url.protocol}//${url.host}`,
      {
        next: url.protocol === 'http:' ? 'if this registry uses plain HTTP: --plain-http' : null,
      },
    );
  }

  async #send(request: HttpRequest, url: URL, authorization: string | null): Promise<HttpAnswer> {
    const { signal } = this.options;
    const seconds = ((request.length ?? 0) + (request.expected ?? 0)) / SLOWEST;
    const limit = AbortSignal.timeout(SILENCE + Math.ceil(seconds * 1000));
    const { request: send } = await import('undici');
    const answer = await send(url, {
      method: request.method,
      dispatcher: await (this.#dispatcher ??= this.#connect(url)),
      headers: {
        'user-agent': 'pcow',
        'accept-encoding': 'identity',
        ...request.headers,
        ...(request.length !== undefined && { 'content-length': String(request.length) }),
        ...(authorization !== null && { authorization }),
      },
      body:
        request.body === undefined ? null : Readable.from(request.body(), { objectMode: false }),
      signal: signal === undefined ? limit : AbortSignal.any([signal, limit]),
    });
    // If an answer is abandoned in the middle, its body emits an error that nothing waits for.
    answer.body.on('error', () => undefined);
    return { status: answer.statusCode, headers: answer.headers, url, body: answer.body };
  }

  async #connect(url: URL): Promise<Dispatcher> {
    const { EnvHttpProxyAgent } = await import('undici');
    const ca = certificatesFor(url.host, this.options.certificates ?? []);
    const times = { headersTimeout: SILENCE, bodyTimeout: SILENCE, connectTimeout: 20_000 };
    // The last two are for the proxy's agent, to which undici passes them. Its types do not say so.
    const options = {
      ...times,
      connect: { ca, timeout: 20_000 },
      requestTls: { ca },
      proxyTls: { ca },
    };
    return new EnvHttpProxyAgent(options);
  }
}

/** Reads the rest of an answer that is not needed, so that its connection can be used again. */
export async function skip({ body }: HttpAnswer): Promise<void> {
  await body.dump({ limit: LONGEST_MESSAGE }).catch(() => undefined);
}

/** The bytes of an answer, of which there must not be more than `most`. */
export async function bodyOf(
  answer: HttpAnswer,
  most: number,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    for await (const chunk of answer.body as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > most)
        throw new PcowError('PCOW_CORRUPT', `${answer.url.host} sends more than was asked for`, {
          next: null,
        });
      chunks.push(chunk);
    }
  } catch (error) {
    if (signal?.aborted) throw cancelled('the transfer', signal);
    throw isPcowError(error) || !(error instanceof Error) ? error : unreachable(answer.url, error);
  } finally {
    answer.body.destroy();
  }
  return Buffer.concat(chunks, length);
}

/**
 * The registry's reason for its refusal, on one line, without characters that a terminal
 * interprets.
 */
export async function messageOf(answer: HttpAnswer): Promise<string> {
  const text = await bodyOf(answer, LONGEST_MESSAGE, undefined).then(
    (bytes) => bytes.toString('utf8'),
    () => '',
  );
  let told = '';
  try {
    const { errors, details } = JSON.parse(text) as {
      errors?: { code?: string; message?: string }[];
      details?: string;
    };
    told = errors?.map(({ code, message }) => message ?? code ?? '').join('; ') ?? details ?? '';
  } catch {
    // then only the status is reported
  }

  const line = String(told)
    .replace(/\p{Cc}+/gu, ' ')
    .trim()
    .slice(0, 200);
  return line === '' ? `HTTP ${answer.status}` : `HTTP ${answer.status}, ${line}`;
}

/** Milliseconds of a Retry-After header; 0 if there is no valid one. */
function waitTold(header: string | string[] | undefined): number {
  const seconds = typeof header === 'string' && /^\d{1,6}$/.test(header) ? Number(header) : 0;
  return Math.min(LONGEST_PAUSE, seconds * 1000);
}

/** False for errors that will not go away: a wrong certificate, a name that does not exist. */
function mayPass(error: Error): boolean {
  const code = codeOf(error);
  return !/^(ERR_TLS|CERT_|UNABLE_TO|SELF_SIGNED|DEPTH_ZERO|ERR_SSL|EPROTO|ENOTFOUND|UND_ERR_INVALID_ARG|ERR_INVALID)/.test(
    code,
  );
}

function codeOf(error: Error): string {
  const cause = error.cause instanceof Error ? error.cause : error;
  return 'code' in cause ? String(cause.code) : '';
}

export function unreachable(url: URL, error: Error): PcowError {
  const code = codeOf(error);
  const why =
    error.name === 'TimeoutError' ? 'it is too slow' : error.message || code || error.name;
  const next = /CERT|SELF_SIGNED|UNABLE_TO|DEPTH_ZERO/.test(code)
    ? 'if its certificate is right, name the file of its authority: --ca FILE'
    : /ERR_SSL|EPROTO/.test(code)
      ? 'if it speaks plain HTTP: --plain-http'
      : 'see whether it can be reached, then run the same command again: it continues from there';
  return new PcowError('PCOW_IO', `no answer from ${url.host}: ${why}`, { cause: error, next });
}

/** The system's bundle, as other programs use it. */
const SYSTEM = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt'];

/**
 * The authorities of Node, of the system, of this host as docker and skopeo keep them, and the
 * given ones.
 */
function certificatesFor(host: string, given: readonly string[]): string[] {
  const bundle = process.env.SSL_CERT_FILE ?? SYSTEM.find((file) => existsSync(file));
  const own = ['/etc/docker/certs.d', '/etc/containers/certs.d'].flatMap((directory) => {
    const folder = path.join(directory, host);
    return existsSync(folder)
      ? readdirSync(folder)
          .filter((name) => name.endsWith('.crt'))
          .map((name) => path.join(folder, name))
      : [];
  });
  const files = [...(bundle === undefined ? [] : [bundle]), ...own, ...given];
  return [...rootCertificates, ...files.map((file) => readFileSync(file, 'utf8'))];
}
