import { execFileSync } from 'node:child_process';
import path from 'node:path';

/** A key with a certificate that signs itself, each in a file. */
export interface Certificate {
  key: string;
  certificate: string;
}

/** `names`: what the server is reached by, as OpenSSL's subjectAltName. */
export function selfSigned(directory: string, name: string, names: string): Certificate {
  const [key, certificate] = [
    path.join(directory, `${name}.key`),
    path.join(directory, `${name}.cert`),
  ];
  const words = [
    ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2'],
    ...['-subj', `/CN=${name}`, '-addext', `subjectAltName=${names}`],
    ...['-keyout', key, '-out', certificate],
  ];
  execFileSync('openssl', words, { stdio: 'ignore' });
  return { key, certificate };
}
