/** The certificates for connections to a host, where docker, podman and skopeo keep them. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';
import { createSecureContext, rootCertificates, type SecureContext } from 'node:tls';
import { isMissing, PcowError } from '../engine/index.js';

/** The system's bundle, as other programs use it. */
const SYSTEM = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt'];

/**
 * Trusts the authorities of Node, of the system, of the registry and of this host, and the given
 * ones. Only this host gets the client's certificate that is kept for it.
 */
export function secureContextFor(
  host: string,
  registry: string,
  given: readonly string[],
): SecureContext {
  const bundle = process.env.SSL_CERT_FILE ?? SYSTEM.find((file) => existsSync(file));
  const own = new Set([...filesOf(host), ...filesOf(registry)].filter(isAuthority));
  const files = [...(bundle === undefined ? [] : [bundle]), ...own, ...given];
  const ca = [...rootCertificates, ...files.map(read)];
  const client = clientOf(host);
  try {
    return createSecureContext({
      ca,
      ...(client !== null && { cert: read(client.certificate), key: read(client.key) }),
    });
  } catch (cause) {
    const names = [...own, ...given, ...(client === null ? [] : Object.values(client))].join(', ');
    throw new PcowError(
      'PCOW_INVALID',
      `the certificates for ${host} cannot be used: ${(cause as Error).message}`,
      { cause, next: names === '' ? null : `see whether these are in PEM form: ${names}` },
    );
  }
}

/** All files that these programs keep for a host, with their paths. */
function filesOf(host: string): string[] {
  const own = path.join(homedir(), '.config/containers');
  return [own, '/etc/containers', '/etc/docker'].flatMap((directory) => {
    const folder = path.join(directory, 'certs.d', host);
    return existsSync(folder)
      ? readdirSync(folder)
          .sort()
          .map((name) => path.join(folder, name))
      : [];
  });
}

function isAuthority(file: string): boolean {
  return file.endsWith('.crt');
}

/** The first pair NAME.cert and NAME.key. */
function clientOf(host: string): { certificate: string; key: string } | null {
  const files = filesOf(host);
  const certificate = files.find((file) => file.endsWith('.cert'));
  if (certificate === undefined) return null;
  const key = certificate.replace(/\.cert$/, '.key');
  if (files.includes(key)) return { certificate, key };
  throw new PcowError('PCOW_INVALID', `${certificate} has no key`, {
    next: `put its key beside it: ${key}`,
  });
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    const why = isMissing(cause) ? 'it does not exist' : (cause as Error).message;
    throw new PcowError('PCOW_INVALID', `the file of certificates ${file} cannot be read: ${why}`, {
      cause,
      next: null,
    });
  }
}
