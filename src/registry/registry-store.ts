/** A repository of a registry, according to the OCI distribution specification. */
import { PcowError } from '../engine/index.js';
import { Authorizer, refused } from './authorize.js';
import type { Credentials } from './credentials.js';
import { bodyOf, type HttpAnswer, messageOf, skip } from './answers.js';
import { Http, type HttpOptions, type HttpRequest } from './http.js';
import { digestOf } from './digest.js';
import { type Blob, blobOf, corrupt, LONGEST_TEXT, MANIFEST_TYPE } from './manifest.js';
import { formatReference, type RegistryReference } from './reference.js';
import { RemoteBlob } from './remote-blob.js';
import { type BlobReader, once, type Store } from './store.js';
import { untilDone } from './tries.js';

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
    this.#http = new Http(host, options);
    this.#root = new URL(`v2/${repository}/`, addressOf(host, options));
    const actions = options.forWriting === true ? 'pull,push' : 'pull';
    this.#authorizer = new Authorizer(this.#http, this.#root, host, repository, actions);
  }

  async readManifest(): Promise<Buffer> {
    const { digest, tag } = this.reference;
    const request: HttpRequest = {
      method: 'GET',
      url: new URL(`manifests/${digest ?? tag ?? ''}`, this.#root),
      what: `the manifest of ${this.name}`,
      headers: {
        accept: `${MANIFEST_TYPE}, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json`,
      },
    };
    const bytes = await this.#request(request, async (answer) => {
      if (answer.status !== 200) throw await this.#failed(answer);
      return bodyOf(answer, LONGEST_TEXT);
    });
    if (digest !== null && digestOf(bytes) !== digest)
      throw corrupt(this.name, 'the bytes of its manifest do not match their digest');
    return bytes;
  }

  hasBlob(blob: Blob): Promise<boolean> {
    return this.#request({ method: 'HEAD', ...this.#blob(blob) }, async (answer) => {
      await skip(answer);
      if (answer.status === 200 || answer.status === 404) return answer.status === 200;
      throw await this.#failed(answer);
    });
  }

  openBlob(blob: Blob): BlobReader {
    return new RemoteBlob(blob, this.name, this.options, (range, use) => {
      const end = range === null ? 0 : range.offset + range.length - 1;
      const headers = range === null ? {} : { range: `bytes=${range.offset}-${end}` };
      const request: HttpRequest = { method: 'GET', ...this.#blob(blob), headers };
      return this.#http.once(this.#authorized(request), async (answer) => {
        if (answer.status === 200 || answer.status === 206) return use(answer);
        throw await this.#failed(answer);
      });
    });
  }

  /** Each try begins a new upload, because a registry may keep a part of a broken one. */
  writeBlob(blob: Blob, open: () => AsyncIterable<Uint8Array>): Promise<void> {
    return untilDone(this.options, async () => {
      const url = await this.#beginUpload(blob);
      url.searchParams.set('digest', blob.digest);
      const headers = { 'content-type': 'application/octet-stream' };
      const request: HttpRequest = {
        ...{ method: 'PUT', ...this.#blob(blob), url, headers },
        ...{ body: open, length: blob.size },
      };
      await this.#http.once(this.#authorized(request), (answer) => this.#expect(answer, 201, 204));
    });
  }

  async writeManifest(bytes: Buffer, type = MANIFEST_TYPE): Promise<void> {
    const { digest } = blobOf(bytes);
    const request: HttpRequest = {
      method: 'PUT',
      url: new URL(`manifests/${this.reference.tag ?? digest}`, this.#root),
      what: `the manifest of ${this.name}`,
      headers: { 'content-type': type },
      body: () => once(bytes),
      length: bytes.length,
    };
    await this.#request(request, (answer) => this.#expect(answer, 201));
  }

  close(): Promise<void> {
    return this.#http.close();
  }

  #blob({ digest }: Blob): Pick<HttpRequest, 'url' | 'what'> {
    return {
      url: new URL(`blobs/${digest}`, this.#root),
      what: `the blob ${digest} of ${this.name}`,
    };
  }

  /** The address for the bytes. */
  #beginUpload({ digest }: Blob): Promise<URL> {
    const request: HttpRequest = {
      method: 'POST',
      url: new URL('blobs/uploads/', this.#root),
      what: `the blob ${digest} of ${this.name}`,
      length: 0,
      body: () => once(Buffer.alloc(0)),
    };
    return this.#http.once(this.#authorized(request), async (answer) => {
      await this.#expect(answer, 202);
      const { location } = answer.headers;
      if (typeof location !== 'string' || !URL.canParse(location, answer.url.href)) {
        throw new PcowError('PCOW_IO', `${answer.url.host} does not say where to send a blob`, {
          next: 'see whether this is the right registry',
        });
      }
      const url = new URL(location, answer.url);
      this.#http.check(url, this.#root);
      return url;
    });
  }

  #request<T>(request: HttpRequest, use: (answer: HttpAnswer) => Promise<T>): Promise<T> {
    return this.#http.request(this.#authorized(request), use);
  }

  /** An address on another host contains its own authorization. */
  #authorized(request: HttpRequest): HttpRequest {
    if (request.url.origin !== this.#root.origin) return request;
    const authorization = (challenge: string | null, used: string | null) =>
      this.#authorizer.header(challenge, used);
    return { ...request, authorization };
  }

  async #expect(answer: HttpAnswer, ...statuses: number[]): Promise<void> {
    if (!statuses.includes(answer.status)) throw await this.#failed(answer);
    await skip(answer);
  }

  async #failed(answer: HttpAnswer): Promise<PcowError> {
    const { host } = this.reference;
    const why = await messageOf(answer);
    switch (answer.status) {
      case 401:
      case 403:
        return refused(host, why, false);
      case 404:
        return new PcowError('PCOW_NOT_FOUND', `${host} does not have ${answer.what} (${why})`, {
          next: 'check the repository and the tag: skopeo list-tags docker://HOST/REPOSITORY',
        });
      case 416:
        return corrupt(this.name, `${answer.what} is shorter than its manifest says`);
      default:
        return new PcowError('PCOW_IO', `${host} fails on ${answer.what}: ${why}`, {
          next: 'see whether this is the right registry',
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
  const http = new Http(host, options);
  try {
    const root = new URL('v2/', addressOf(host, options));
    const authorizer = new Authorizer(http, root, host, '', '', credentials);
    const authorization = (challenge: string | null, used: string | null) =>
      authorizer.header(challenge, used);
    const what = 'the credentials';
    await http.request({ method: 'GET', url: root, what, authorization }, async (answer) => {
      if (answer.status !== 200) throw refused(host, await messageOf(answer), true);
      await skip(answer);
    });
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
