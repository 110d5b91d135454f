/**
 * Requests to a registry: tried again with growing pauses, and redirected without credentials.
 */
import { Readable } from 'node:stream';
import { PcowError } from '../engine/index.js';
import { broken, checkLasting, type HttpAnswer, skip, SLOWEST } from './answers.js';
import { Connections } from './connections.js';
import { PATIENCE, type Trying, untilDone } from './tries.js';

/** Bytes per second that a registry must be able to store before it answers to an upload. */
const SLOWEST_STORE = 16 << 20;
const MOST_REDIRECTS = 5;
const REDIRECTS = [301, 302, 303, 307, 308];

export interface HttpOptions extends Trying {
  /** Files with certificates to trust, besides those of the system. */
  certificates?: readonly string[] | undefined;
  /** Use HTTP, and follow redirects to it. */
  plainHttp?: boolean | undefined;
}

export interface HttpRequest {
  method: 'GET' | 'HEAD' | 'POST' | 'PUT';
  url: URL;
  /** For messages: what is asked for. */
  what: string;
  headers?: Record<string, string> | undefined;
  /** Called again for each try. */
  body?: (() => AsyncIterable<Uint8Array>) | undefined;
  /** Bytes of the body. */
  length?: number | undefined;
  /** Added to the request, but never sent to another host. */
  authorization?:
    ((challenge: string | null, used: string | null) => Promise<string | null>) | undefined;
}

export class Http {
  readonly #connections: Connections;

  /** `host`: of the registry, as the user named it. */
  constructor(
    host: string,
    private readonly options: HttpOptions,
  ) {
    this.#connections = new Connections(host, options.certificates ?? []);
  }

  get plain(): boolean {
    return this.options.plainHttp === true;
  }

  /** Lets `use` read the answer, whatever its status. Temporary failures of both are retried. */
  request<T>(request: HttpRequest, use: (answer: HttpAnswer) => Promise<T>): Promise<T> {
    return untilDone(this.options, () => this.once(request, use));
  }

  /** The same, tried once. Fails with Temporary if another try may succeed. */
  async once<T>(request: HttpRequest, use: (answer: HttpAnswer) => Promise<T>): Promise<T> {
    let { url } = request;
    try {
      const answer = await this.#withRedirects(request, (now) => (url = now));
      await checkLasting(answer);
      return await use(answer);
    } catch (error) {
      throw broken(error, { url, what: request.what });
    }
  }

  close(): Promise<void> {
    return this.#connections.close();
  }

  async #withRedirects(request: HttpRequest, onUrl: (url: URL) => void): Promise<HttpAnswer> {
    let { url } = request;
    let challenge: string | null = null;
    let used: string | null = null;
    for (let step = 0; step <= MOST_REDIRECTS; step++) {
      onUrl(url);
      const own = url.origin === request.url.origin;
      used = own ? ((await request.authorization?.(challenge, used)) ?? null) : null;
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
        own
      ) {
        await skip(answer);
        challenge = Array.isArray(asked) ? asked.join(', ') : (asked ?? '');
        continue;
      }
      return answer;
    }
    throw new PcowError(
      'PCOW_IO',
      `${request.url.host} redirects more than ${MOST_REDIRECTS} times on ${request.what}`,
      { next: 'see whether this is the right registry' },
    );
  }

  #target(from: URL, location: string | string[] | undefined): URL {
    if (typeof location === 'string' && URL.canParse(location, from.href)) {
      const url = new URL(location, from);
      this.check(url, from);
      return url;
    }
    throw new PcowError('PCOW_IO', `${from.host} redirects without a valid address`, {
      next: 'see whether this is the right registry',
    });
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
    const { length = 0, what } = request;
    const limit = new AbortController();
    const timer = setTimeout(
      () => {
        limit.abort(new DOMException('it is too slow', 'TimeoutError'));
      },
      PATIENCE + Math.ceil((length / SLOWEST) * 1000),
    );
    try {
      const { request: send } = await import('undici');
      const { statusCode, headers, body } = await send(url, {
        method: request.method,
        dispatcher: await this.#connections.to(url),
        headersTimeout: PATIENCE + Math.ceil((length / SLOWEST_STORE) * 1000),
        bodyTimeout: 0, // see chunksOf()
        headers: {
          'user-agent': 'pcow',
          'accept-encoding': 'identity',
          ...request.headers,
          ...(request.length !== undefined && { 'content-length': String(length) }),
          ...(authorization !== null && { authorization }),
        },
        body:
          request.body === undefined ? null : Readable.from(request.body(), { objectMode: false }),
        signal: signal === undefined ? limit.signal : AbortSignal.any([signal, limit.signal]),
      });
      // If an answer is abandoned in the middle, its body emits an error that nothing waits for.
      body.on('error', () => undefined);
      return { status: statusCode, headers, url, body, what };
    } finally {
      clearTimeout(timer);
    }
  }
}
