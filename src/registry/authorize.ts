/**
 * How requests to one repository are authorized: Basic, or by a token from a server that the
 * registry names. No credentials are sent before the registry has asked for them.
 */
import { PcowError } from '../engine/index.js';
import { word } from '../engine/quote.js';
import { type Credentials, credentialsFor } from './credentials.js';
import { bodyOf, messageOf } from './answers.js';
import type { Http, HttpRequest } from './http.js';
import { once } from './store.js';

/** Bytes of the answer of a token server. */
const LONGEST_TOKEN = 1 << 20;

export class Authorizer {
  /** The present header; a promise, so that concurrent requests ask for one token. */
  #current: Promise<string | null> = Promise.resolve(null);
  #credentials: Promise<Credentials | null> | undefined;

  constructor(
    private readonly http: Http,
    private readonly registry: URL,
    private readonly host: string,
    private readonly repository: string,
    private readonly actions: string,
    private readonly given: Credentials | null = null,
  ) {}

  /**
   * The header for a request. `challenge`: why the same request was just refused, when it had the
   * header `used`; null: it is the first try.
   */
  async header(challenge: string | null, used: string | null): Promise<string | null> {
    const current = this.#current;
    const known = await current;
    // Another request may have got a new one meanwhile, or may be getting it.
    if (challenge === null || known !== used || this.#current !== current) return this.#current;
    this.#current = this.#answer(challenge);
    this.#current.catch(() => undefined);
    return this.#current;
  }

  async #answer(challenge: string): Promise<string | null> {
    const { scheme, parameters } = parseChallenge(challenge);
    const credentials = await (this.#credentials ??=
      this.given === null
        ? credentialsFor(this.host, this.repository)
        : Promise.resolve(this.given));
    if (scheme === 'bearer') return `Bearer ${await this.#token(parameters, credentials)}`;
    if (scheme !== 'basic' || credentials === null) return null;
    return basic(credentials);
  }

  async #token(
    parameters: ReadonlyMap<string, string>,
    credentials: Credentials | null,
  ): Promise<string> {
    const url = this.#realm(parameters.get('realm'));
    const scope =
      parameters.get('scope') ??
      (this.repository === '' ? null : `repository:${this.repository}:${this.actions}`);
    const service = parameters.get('service');
    const isToken = credentials?.username === '';
    const wanted = new URLSearchParams();
    if (service !== undefined) wanted.set('service', service);
    if (credentials !== null && isToken) {
      if (scope !== null) wanted.set('scope', scope);
      wanted.set('grant_type', 'refresh_token');
      wanted.set('client_id', 'pcow');
      wanted.set('refresh_token', credentials.secret);
    } else {
      for (const one of scope?.split(' ') ?? []) wanted.append('scope', one);
      for (const [name, value] of wanted) url.searchParams.append(name, value);
    }
    const form = Buffer.from(wanted.toString());
    const request: HttpRequest = {
      method: isToken ? 'POST' : 'GET',
      url,
      what: `a token for ${this.host}`,
      headers: isToken ? { 'content-type': 'application/x-www-form-urlencoded' } : {},
      ...(isToken && { body: () => once(form), length: form.length }),
      authorization: () =>
        Promise.resolve(credentials === null || isToken ? null : basic(credentials)),
    };
    return this.http.request(request, async (answer) => {
      if (answer.status !== 200)
        throw refused(this.host, await messageOf(answer), credentials !== null);
      return tokenIn(await bodyOf(answer, LONGEST_TOKEN), url);
    });
  }

  #realm(realm: string | undefined): URL {
    let url: URL;
    try {
      url = new URL(realm ?? '');
    } catch {
      throw new PcowError(
        'PCOW_IO',
        `${this.host} asks for a token, and does not say where to get it`,
        { next: 'see whether this is the right registry' },
      );
    }
    this.http.check(url, this.registry);
    return url;
  }
}

function tokenIn(bytes: Buffer, url: URL): string {
  try {
    const { token, access_token: other } = JSON.parse(bytes.toString('utf8')) as {
      token?: unknown;
      access_token?: unknown;
    };
    const found = token ?? other;
    if (typeof found === 'string' && /^[\x21-\x7e]+$/.test(found)) return found;
  } catch {
    // reported below
  }
  throw new PcowError('PCOW_IO', `${url.host} gave no token`, {
    next: 'see whether this is the right registry',
  });
}

function basic({ username, secret }: Credentials): string {
  return `Basic ${Buffer.from(`${username}:${secret}`).toString('base64')}`;
}

export function refused(host: string, why: string, known: boolean): PcowError {
  return new PcowError('PCOW_PERMISSION', `${host} refuses: ${why}`, {
    next: known
      ? `other credentials may help: pcow login ${word(host)}`
      : `it may need credentials: pcow login ${word(host)}`,
  });
}

/** `Bearer realm="…",service="…"`; a Bearer challenge if there are several. */
function parseChallenge(header: string): { scheme: string; parameters: Map<string, string> } {
  const text = header.slice(0, 8192);
  const bearer = /\bbearer\s/i.exec(text);
  const scheme =
    bearer === null ? (/^\s*([a-z]+)/i.exec(text)?.[1]?.toLowerCase() ?? '') : 'bearer';
  const parameters = new Map<string, string>();
  const rest = bearer === null ? text : text.slice(bearer.index);
  for (const [, name, quoted, plain] of rest.matchAll(/([a-z_]+)=(?:"([^"]*)"|([^\s,"]+))/gi)) {
    const key = name?.toLowerCase() ?? '';
    if (!parameters.has(key)) parameters.set(key, quoted ?? plain ?? '');
  }
  return { scheme, parameters };
}
