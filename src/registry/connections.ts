/** The connections to a registry, and to the servers to which it leads. */
import type { Dispatcher } from 'undici';
import { secureContextFor } from './certificates.js';
import { proxyFor } from './proxy.js';

/** Milliseconds. */
const CONNECT_LIMIT = 20_000;

export class Connections {
  /** By the origin: each server has its own proxy and certificates. */
  readonly #servers = new Map<string, Promise<Dispatcher>>();

  constructor(
    private readonly registry: string,
    private readonly certificates: readonly string[],
  ) {}

  to(url: URL): Promise<Dispatcher> {
    const known = this.#servers.get(url.origin);
    if (known !== undefined) return known;
    const made = this.#connect(url);
    this.#servers.set(url.origin, made);
    return made;
  }

  async close(): Promise<void> {
    for (const one of await Promise.allSettled(this.#servers.values()))
      if (one.status === 'fulfilled') await one.value.destroy();
  }

  async #connect(url: URL): Promise<Dispatcher> {
    const { Agent, ProxyAgent } = await import('undici');
    const proxy = proxyFor(url);
    const connect = { timeout: CONNECT_LIMIT, ...this.#tls(url) };
    if (proxy === null) return new Agent({ connect });
    return new ProxyAgent({
      uri: proxy.href,
      // A proxy need not allow tunnels to other ports than that of HTTPS.
      proxyTunnel: url.protocol === 'https:',
      requestTls: connect,
      proxyTls: { timeout: CONNECT_LIMIT, ...this.#tls(proxy) },
    });
  }

  /** Made once for a server: reading hundreds of authorities takes longer than connecting. */
  #tls({ protocol, host }: URL) {
    return protocol === 'https:'
      ? { secureContext: secureContextFor(host, this.registry, this.certificates) }
      : {};
  }
}
