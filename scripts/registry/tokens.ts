/** A token server for Debian's registry (RegistryOptions.token). */
import { createSign, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { IncomingMessage, RequestListener } from 'node:http';
import { text } from 'node:stream/consumers';

import type { Certificate } from './certificate.js';

/** The token that a token server takes instead of the password. */
export const IDENTITY_TOKEN = 'an-identity-token';

/**
 * The answers of a token server that lets `me` with the password `secret` do everything. `seconds`:
 * how long a token lasts.
 */
export function tokenServer(
  tls: Certificate,
  onToken: (scope: string) => void,
  seconds = 300,
): RequestListener {
  const chain = new X509Certificate(readFileSync(tls.certificate)).raw.toString('base64');
  const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
  return (request, response) => {
    void asked(request).then((scopes) => {
      if (scopes === null) {
        response.writeHead(401).end('{"errors":[{"message":"who are you?"}]}');
        return;
      }
      onToken(scopes.join(' '));
      response
        .writeHead(200, { 'content-type': 'application/json' })
        .end(JSON.stringify({ token: tokenFor(scopes) }));
    });
  };

  /** null: without the right credentials. */
  async function asked(request: IncomingMessage): Promise<string[] | null> {
    if (request.method === 'POST') {
      const form = new URLSearchParams(await text(request));
      const right =
        form.get('grant_type') === 'refresh_token' && form.get('refresh_token') === IDENTITY_TOKEN;
      return right ? (form.get('scope')?.split(' ') ?? []) : null;
    }
    const user = `Basic ${Buffer.from('me:secret').toString('base64')}`;
    const url = new URL(request.url ?? '', 'https://localhost');
    return request.headers.authorization === user ? url.searchParams.getAll('scope') : null;
  }

  function tokenFor(scopes: string[]): string {
    const access = scopes.map((scope) => {
      const [type, name, actions = ''] = scope.split(':');
      return { type, name, actions: actions.split(',') };
    });
    const now = Math.floor(Date.now() / 1000);
    // The registry allows a minute of difference between clocks.
    const claims = {
      iss: 'tests',
      sub: 'me',
      aud: 'test',
      exp: now + seconds - 60,
      nbf: now - 600,
      iat: now,
      jti: '1',
      access,
    };
    const signed = `${base64({ typ: 'JWT', alg: 'RS256', x5c: [chain] })}.${base64(claims)}`;
    const signature = createSign('RSA-SHA256')
      .update(signed)
      .sign(readFileSync(tls.key), 'base64url');
    return `${signed}.${signature}`;
  }
}
