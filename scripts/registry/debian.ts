/** Debian's registry, as the tests, the demos, the benchmarks and the lab start it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { freePort, isOpen } from '../ports.js';
import type { Certificate } from './certificate.js';

export interface RegistryOptions {
  /** Otherwise it is reachable on this machine only, at a free port. */
  address?: { host: string; port: number };
  /** The directory of its blobs, which registries may share. Otherwise it has its own. */
  data?: string;
  tls?: Certificate;
  /** Only clients with a certificate of this authority. */
  clients?: Certificate;
  /** Of the user `me` with the password `secret`. */
  basic?: boolean;
  /** Tokens of this server (tokens.ts). */
  token?: { realm: string; certificate: string };
  /** It redirects to this server of its `data` instead of sending blobs. */
  redirect?: string;
}

/** crypt(3) of `secret`. */
const PASSWORD = '$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a';

/** What it keeps in its directory outlives its process. The caller makes and removes the directory. */
export class Registry {
  #process: ChildProcess | undefined;

  private constructor(
    /** HOST:PORT. */
    readonly host: string,
    private readonly port: number,
    private readonly config: string,
  ) {}

  /** One that has not been started. */
  static async make(directory: string, options: RegistryOptions = {}): Promise<Registry> {
    const address = options.address ?? { host: '127.0.0.1', port: await freePort() };
    const { host, port } = address;
    const config = path.join(directory, 'config.yml');
    const data = options.data ?? path.join(directory, 'data');
    mkdirSync(data, { recursive: true });
    if (options.basic === true) writeFileSync(path.join(directory, 'htpasswd'), `me:${PASSWORD}\n`);
    const sections = {
      version: 0.1,
      log: { level: 'error' },
      storage: { filesystem: { rootdirectory: data }, delete: { enabled: true } },
      http: { addr: `${host}:${port}`, secret: 'pcow', ...tlsOf(options) },
      ...authOf(directory, options),
      ...(options.redirect !== undefined && {
        middleware: { storage: [{ name: 'redirect', options: { baseurl: options.redirect } }] },
      }),
    };
    // JSON is YAML.
    writeFileSync(config, JSON.stringify(sections));
    return new Registry(options.address ? `${host}:${port}` : `localhost:${port}`, port, config);
  }

  /** Resolves when it listens. */
  async start(): Promise<void> {
    // It takes variables such as REGISTRY_AUTH_FILE for its own configuration.
    const env = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !name.startsWith('REGISTRY_')),
    );
    const child = spawn('docker-registry', ['serve', this.config], { stdio: 'ignore', env });
    this.#process = child;
    await once(child, 'spawn');
    while (!(await isOpen(this.port))) {
      if (!runs(child)) throw new Error('docker-registry has ended');
      await sleep(20);
    }
  }

  /** Resolves when it has ended by itself, or was killed. */
  async ended(): Promise<void> {
    if (this.#process && runs(this.#process)) await once(this.#process, 'exit');
  }

  async stop(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const ended = this.ended();
    this.#process?.kill(signal);
    await ended;
  }
}

function runs({ exitCode, signalCode }: ChildProcess): boolean {
  return exitCode === null && signalCode === null;
}

function tlsOf({ tls, clients }: RegistryOptions): object {
  if (tls === undefined) return {};
  const only = clients && { clientcas: [clients.certificate] };
  return { tls: { certificate: tls.certificate, key: tls.key, ...only } };
}

function authOf(directory: string, { basic, token }: RegistryOptions): object {
  if (basic === true)
    return { auth: { htpasswd: { realm: 'test', path: path.join(directory, 'htpasswd') } } };
  if (token === undefined) return {};
  const { realm, certificate } = token;
  const server = { realm, service: 'test', issuer: 'tests', rootcertbundle: certificate };
  return { auth: { token: server } };
}
