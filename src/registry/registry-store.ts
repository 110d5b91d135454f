/** A repository of a registry, according to the OCI distribution specification. */
import { PcowError } from '../engine/index.js';
import { Authorizer, refused } from './authorize.js';
import type { Credentials } from './credentials.js';
import {
  bodyOf,
  Http,
  type HttpAnswer,
  type HttpOptions,
  type HttpRequest,
  messageOf,
  skip,
  unreachable,
} from './http.js';
import { digestOf } from './digest.js';
import { type Blob, blobOf, corrupt, LONGEST_TEXT, MANIFEST_TYPE } from './manifest.js';
import { formatReference, type RegistryReference } from './reference.js';
import type { BlobReader, Store } from './store.js';

/** The number of tries for a part of a blob if the transfer breaks off. */
const TRIES = 4;

export class RegistryStore implements Store {
  readonly name: string;
  readonly #http: Http;
  readonly #root: URL;
  readonly #authorizer: Authorizer;

  constructor(
    private readonly reference: RegistryReference,
    private readonly options: HttpOptions & { forWriting?: boolean | undefined } = {},
  ) {
    const { host, repository } = reference;
    this.name = formatReference(reference);
    this.#http = new Http(options);
    this.#root = new URL(`v2/${repository}/`, addressOf(host, options));
    const actions = options.forWriting === true ? 'pull,push' : 'pull';
    this.#authorizer = new Authorizer(this.#http, this.#root, host, repository, actions);
  }

  async readManifest(): Promise<Buffer> {
    const { digest, tag } = this.reference;
    const answer = await this.#request({
      method: 'GET',
      url: new URL(`manifests/${digest ?? tag ?? ''}`, this.#root),
      headers: {
        accept: `${MANIFEST_TYPE}, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json`,
      },
      expected: LONGEST_TEXT,
    });
    if (answer.status !== 200) throw await this.#failed(answer, 'the image');
    const bytes = await bodyOf(answer, LONGEST_TEXT, this.options.signal);
    if (digest !== null && digestOf(bytes) !== digest)
      throw corrupt(this.name, 'the bytes of its manifest do not match their digest');
    return bytes;
  }

  async hasBlob({ digest }: Blob): Promise<boolean> {
    const answer = await this.#request({ method: 'HEAD', url: this.#blobUrl(digest) });
    await skip(answer);
    if (answer.status === 200 || answer.status === 404) return answer.status === 200;
    throw await this.#failed(answer, digest);
  }

  openBlob(blob: Blob): BlobReader {
    return new RemoteBlob(blob, this.name, this.options.signal, async (range) => {
      const headers =
        range === null ? {} : { range: `bytes=${range.offset}-${range.offset + range.length - 1}` };
      const expected = range?.length ?? blob.size;
      const answer = await this.#request({
        method: 'GET',
        url: this.#blobUrl(blob.digest),
        headers,
        expected,
      });
      if (answer.status !== 200 && answer.status !== 206)
        throw await this.#failed(answer, blob.digest);
      return answer;
    });
  }

  async writeBlob({ digest, size }: Blob, open: () => AsyncIterable<Uint8Array>): Promise<void> {
    const begun = await this.#request({
      method: 'POST',
      url: new URL('blobs/uploads/', this.#root),
      length: 0,
      body: nothing,
    });
    if (begun.status !== 202) throw await this.#failed(begun, 'an upload');
    await skip(begun);
    const { location } = begun.headers;
    const url = new URL(String(location), begun.url);
    this.#http.check(url, this.#root);
    url.searchParams.set('digest', digest);
    const headers = { 'content-type': 'application/octet-stream' };
    // A registry may answer before everything has arrived, and keep the session for another try.
    const done = await this.#request({ method: 'PUT', url, headers, body: open, length: size });
    if (done.status !== 201 && done.status !== 204) throw await this.#failed(done, digest);
    await skip(done);
  }

  async writeManifest(bytes: Buffer): Promise<void> {
    const { digest } = blobOf(bytes);
    const answer = await this.#request({
      method: 'PUT',
      url: new URL(`manifests/${this.reference.tag ?? digest}`, this.#root),
      headers: { 'content-type': MANIFEST_TYPE },
      body: () => [bytes] as unknown as AsyncIterable<Uint8Array>,
      length: bytes.length,
    });
    if (answer.status !== 201) throw await this.#failed(answer, 'the manifest');
    await skip(answer);
  }

  close(): Promise<void> {
    return this.#http.close();
  }

  #blobUrl(digest: string): URL {
    return new URL(`blobs/${digest}`, this.#root);
  }

  async #request(request: HttpRequest): Promise<HttpAnswer> {
    // An address on another host contains its own authorization.
    const own = request.url.origin === this.#root.origin;
    const authorization = own
      ? (challenge: string | null, used: string | null) => this.#authorizer.header(challenge, used)
      : undefined;
    return this.#http.request({ ...request, authorization });
  }

  async #failed(answer: HttpAnswer, what: string): Promise<PcowError> {
    const { host } = this.reference;
    const why = await messageOf(answer);
    switch (answer.status) {
      case 401:
      case 403:
        return refused(host, why, false);
      case 404:
        return new PcowError(
          'PCOW_NOT_FOUND',
          `${this.name}: ${host} does not have ${what} (${why})`,
          {
            next: 'check the repository and the tag: skopeo list-tags docker://HOST/REPOSITORY',
          },
        );
      case 416:
        return corrupt(this.name, `${what} is shorter than its manifest says`);
      case 429:
        return new PcowError('PCOW_BUSY', `${host} limits the number of requests (${why})`, {
          next: 'run the same command again later: it continues from there',
        });
      default:
        return new PcowError('PCOW_IO', `${host} does not serve ${what}: ${why}`, {
          next: 'run the same command again: it continues from there',
        });
    }
  }
}

/** Checks the credentials with the registry itself. */
export async function checkCredentials(
  host: string,
  credentials: Credentials,
  options: HttpOptions,
): Promise<void> {
  const http = new Http(options);
  try {
    const root = new URL('v2/', addressOf(host, options));
    const authorizer = new Authorizer(http, root, host, '', '', credentials);
    const authorization = (challenge: string | null, used: string | null) =>
      authorizer.header(challenge, used);
    const answer = await http.request({ method: 'GET', url: root, authorization });
    if (answer.status !== 200) throw refused(host, await messageOf(answer), true);
    await skip(answer);
  } finally {
    await http.close();
  }
}

/** Docker Hub's server has another name than its images use. */
function addressOf(host: string, { plainHttp }: HttpOptions): URL {
  return new URL(
    `${plainHttp === true ? 'http' : 'https'}://${host === 'docker.io' ? 'registry-1.docker.io' : host}/`,
  );
}

async function* nothing(): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(Buffer.alloc(0));
}

interface Range {
  offset: number;
  length: number;
}

/**
 * Reads parts of a blob with range requests. A registry may ignore ranges and send everything: then
 * the parts are read from that one answer, as long as they are requested in ascending order.
 */
class RemoteBlob implements BlobReader {
  /** The first part is read alone, because it shows whether ranges work. */
  #first: Promise<unknown> | undefined;
  #whole: WholeAnswer | null = null;
  /** Parts that are read from one answer, one after another. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly blob: Blob,
    private readonly name: string,
    private readonly signal: AbortSignal | undefined,
    private readonly get: (range: Range | null) => Promise<HttpAnswer>,
  ) {}

  async read(offset: number, length: number): Promise<Buffer> {
    const range = { offset, length };
    if (this.#first === undefined) {
      const first = this.#retried(range);
      this.#first = first.catch(() => undefined);
      return first;
    }
    await this.#first;
    return this.#retried(range);
  }

  close(): Promise<void> {
    this.#whole?.end();
    return Promise.resolve();
  }

  /** A transfer that breaks off is started again, because another server may answer. */
  async #retried(range: Range): Promise<Buffer> {
    for (let tried = 1; ; tried++) {
      try {
        return await (this.#whole === null ? this.#ranged(range) : this.#queued(range));
      } catch (error) {
        const again = error instanceof PcowError && error.code === 'PCOW_IO' && tried < TRIES;
        if (!again || this.signal?.aborted === true) throw error;
      }
    }
  }

  async #ranged(range: Range): Promise<Buffer> {
    const answer = await this.get(range);
    if (answer.status === 200) {
      const isAll = range.offset === 0 && range.length === this.blob.size;
      if (!isAll) {
        this.#whole?.end();
        this.#whole = new WholeAnswer(answer, this.name, this.signal);
        return this.#queued(range);
      }
    } else {
      checkRange(answer, range, this.name);
    }
    const bytes = await bodyOf(answer, range.length, this.signal);
    if (bytes.length === range.length) return bytes;
    throw unreachable(answer.url, new Error('the answer ends too early'));
  }

  #queued(range: Range): Promise<Buffer> {
    const next = this.#last.then(() => this.#fromWhole(range));
    this.#last = next.catch(() => undefined);
    return next;
  }

  async #fromWhole({ offset, length }: Range): Promise<Buffer> {
    if (this.#whole === null || this.#whole.position > offset) {
      this.#whole?.end();
      this.#whole = new WholeAnswer(await this.get(null), this.name, this.signal);
    }
    const whole = this.#whole;
    try {
      await whole.take(offset - whole.position, false);
      return await whole.take(length, true);
    } catch (error) {
      whole.end();
      // Its position is no longer known: the next try starts another one.
      whole.position = Infinity;
      throw error;
    }
  }
}

function checkRange({ headers, url }: HttpAnswer, { offset, length }: Range, name: string): void {
  const told = /^bytes (\d+)-(\d+)\//.exec(String(headers['content-range'] ?? ''));
  if (told !== null && Number(told[1]) === offset && Number(told[2]) === offset + length - 1)
    return;
  throw corrupt(name, `${url.host} sends another range than was asked for`);
}

/** An answer that contains a blob from its beginning. */
class WholeAnswer {
  position = 0;
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(
    private readonly answer: HttpAnswer,
    private readonly name: string,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#chunks = (answer.body as AsyncIterable<Buffer>)[Symbol.asyncIterator]();
  }

  /** The next bytes; none if they are only skipped. */
  async take(length: number, keep: boolean): Promise<Buffer> {
    const kept: Buffer[] = [];
    for (let missing = length; missing > 0;) {
      if (this.#rest.length === 0) this.#rest = await this.#next();
      const part = this.#rest.subarray(0, missing);
      this.#rest = this.#rest.subarray(part.length);
      this.position += part.length;
      missing -= part.length;
      if (keep) kept.push(part);
    }
    return Buffer.concat(kept);
  }

  end(): void {
    this.answer.body.on('error', () => undefined);
    this.answer.body.destroy();
  }

  async #next(): Promise<Buffer> {
    try {
      const { value, done } = (await this.#chunks.next()) as IteratorResult<Buffer, undefined>;
      if (done !== true) return value;
    } catch (error) {
      if (this.signal?.aborted === true)
        throw new PcowError('PCOW_CANCELLED', `the pull of ${this.name} was stopped`);
      throw unreachable(this.answer.url, error as Error);
    }
    throw unreachable(this.answer.url, new Error('the answer ends too early'));
  }
}
