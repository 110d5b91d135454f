/** Reading the answers of a registry: whatever it sends, memory and time are bounded. */
import type { Dispatcher } from 'undici';
import { isPcowError, PcowError } from '../engine/index.js';
import { proxyFor } from './proxy.js';
import { PATIENCE, pauseTold, Temporary } from './tries.js';

/** Bytes per second that a transfer must reach, except for PATIENCE at a time. */
export const SLOWEST = 16 << 10;
/** Bytes that are read of an answer's error message. */
const LONGEST_MESSAGE = 64 << 10;
/** Answers after which the same request may succeed. */
const TEMPORARY = [408, 429, 500, 502, 503, 504];

export interface HttpAnswer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  /** After redirects. */
  url: URL;
  body: Dispatcher.ResponseData['body'];
  /** For messages: what was asked for. */
  what: string;
}

/** Reads the rest of an answer that is not needed, so that its connection can be used again. */
export async function skip(answer: HttpAnswer): Promise<void> {
  let length = 0;
  try {
    for await (const chunk of chunksOf(answer)) {
      length += chunk.length;
      if (length > LONGEST_MESSAGE) return;
    }
  } catch {
    // then the connection is not used again
  }
}

/**
 * The chunks of a body, as the reader takes them. Each second without a byte counts against
 * PATIENCE, and each byte lets the other side catch up: so a transfer cannot trickle for ever, but
 * it may take as long as its bytes need. The time in which the reader is busy does not count.
 */
export async function* chunksOf(answer: HttpAnswer): AsyncGenerator<Buffer, void> {
  const { body } = answer;
  const chunks: AsyncIterator<Buffer, undefined> = body[Symbol.asyncIterator]();
  let left = PATIENCE;
  try {
    for (;;) {
      const began = performance.now();
      const timer = setTimeout(() => body.destroy(new BadTransfer('it is too slow')), left);
      const next = chunks.next().catch((error: unknown) => {
        throw broken(error, answer);
      });
      const { value, done } = await next.finally(() => {
        clearTimeout(timer);
      });
      if (done === true) return;
      const earned = (value.length / SLOWEST) * 1000;
      left = Math.min(PATIENCE, Math.ceil(left - (performance.now() - began) + earned));
      yield value;
    }
  } finally {
    body.destroy();
  }
}

/** The bytes of an answer, of which there must not be more than `most`. */
export async function bodyOf(answer: HttpAnswer, most: number): Promise<Buffer> {
  // Memory that nothing has been written to is not there yet: a short answer takes little.
  const bytes = Buffer.allocUnsafeSlow(most);
  let length = 0;
  for await (const chunk of chunksOf(answer)) {
    if (length + chunk.length > most) {
      throw new PcowError(
        'PCOW_CORRUPT',
        `${answer.url.host} sends more than ${answer.what} can have`,
        { next: 'see whether this is the right registry' },
      );
    }
    length += chunk.copy(bytes, length);
  }
  return bytes.subarray(0, length);
}

/**
 * The registry's reason for its refusal, on one line, without characters that a terminal
 * interprets.
 */
export async function messageOf(answer: HttpAnswer): Promise<string> {
  const text = await bodyOf(answer, LONGEST_MESSAGE).then(
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

/** Fails if the answer is one after which the request may succeed. */
export async function checkLasting(answer: HttpAnswer): Promise<void> {
  const { status, url, headers, what } = answer;
  if (!TEMPORARY.includes(status)) return;
  const pause = pauseTold(headers['retry-after']);
  const why = await messageOf(answer);
  const wait = pause > 0 ? `wait ${Math.ceil(pause / 1000)} seconds, then ` : '';
  const next = `${wait}run the same command again: it continues from there`;
  throw new Temporary(
    status === 429
      ? new PcowError('PCOW_BUSY', `${url.host} limits the number of requests (${why})`, { next })
      : new PcowError('PCOW_IO', `${url.host} fails on ${what}: ${why}`, { next }),
    pause,
  );
}

/** What is wrong with an answer that arrives. */
export class BadTransfer extends Error {
  readonly code = 'EPIPE';
}

/**
 * A failed connection, or an answer that broke off: temporary, unless it will fail again. All of
 * these have a code; an error without one is a fault of this program, and stays as it is.
 */
export function broken(error: unknown, { url, what }: Pick<HttpAnswer, 'url' | 'what'>): Error {
  const isOther = isPcowError(error) || error instanceof Temporary;
  if (isOther || !(error instanceof Error) || codeOf(error) === '') return error as Error;
  const failure = unreachable(error, url, what, proxyFor(url));
  return mayPass(error) ? new Temporary(failure) : failure;
}

/** False for errors that will not go away: a wrong certificate, a name that does not exist. */
function mayPass(error: Error): boolean {
  if (/\b(?:407|403|401|400|405)\b/.test(refusalOfProxy(error))) return false;
  return !/^(ERR_TLS|CERT_|UNABLE_TO|SELF_SIGNED|DEPTH_ZERO|ERR_SSL|EPROTO|ENOTFOUND|UND_ERR_INVALID_ARG|ERR_INVALID)/.test(
    codeOf(error),
  );
}

/** How undici reports that a proxy lets nothing through. */
function refusalOfProxy({ message }: Error): string {
  return /^Proxy (?:response|Authentication Required) \(\d+\)/.exec(message)?.[0] ?? '';
}

function codeOf(error: Error): string {
  const cause = error.cause instanceof Error ? error.cause : error;
  return 'code' in cause ? String(cause.code) : '';
}

function unreachable(error: Error, { host }: URL, what: string, proxy: URL | null): PcowError {
  const code = codeOf(error);
  const refusal = refusalOfProxy(error);
  if (refusal !== '' && proxy !== null) {
    return new PcowError(
      mayPass(error) ? 'PCOW_IO' : 'PCOW_PERMISSION',
      `the proxy ${proxy.host} does not connect to ${host}: HTTP ${/\d+/.exec(refusal)?.[0] ?? ''}`,
      {
        cause: error,
        next: 'name its user (https_proxy=http://USER:PASSWORD@HOST:PORT), or set no_proxy',
      },
    );
  }
  const way = proxy === null ? '' : ` through the proxy ${proxy.host}`;
  const why =
    error.name === 'TimeoutError' ? 'it is too slow' : error.message || code || error.name;
  const next = /CERT|SELF_SIGNED|UNABLE_TO|DEPTH_ZERO/.test(code)
    ? 'if its certificate is right, name the file of its authority: --ca FILE'
    : /ERR_SSL|EPROTO/.test(code)
      ? 'if it speaks plain HTTP: --plain-http'
      : 'see whether it can be reached, then run the same command again: it continues from there';
  return new PcowError('PCOW_IO', `no answer from ${host}${way} about ${what}: ${why}`, {
    cause: error,
    next,
  });
}
