/**
 * The proxy that leads to a server, as the environment says. The variables mean the same as for
 * docker, podman and skopeo.
 */
import { BlockList, isIP } from 'node:net';
import { PcowError } from '../engine/index.js';

/** null: the server is reached without one. */
export function proxyFor(url: URL): URL | null {
  const { protocol } = url;
  const name = protocol === 'https:' ? 'https_proxy' : 'http_proxy';
  const text = variable(name);
  return text === '' || isExcepted(url) ? null : parseProxy(text, name);
}

/** In lower or upper case. */
function variable(name: string): string {
  return (process.env[name] ?? process.env[name.toUpperCase()] ?? '').trim();
}

function parseProxy(text: string, name: string): URL {
  const url = URL.canParse(text) && text.includes('://') ? new URL(text) : null;
  const guessed = url ?? (URL.canParse(`http://${text}`) ? new URL(`http://${text}`) : null);
  if (guessed !== null && ['http:', 'https:'].includes(guessed.protocol)) return guessed;
  // The value may contain a password.
  throw new PcowError('PCOW_INVALID', `$${name} does not name a proxy that Pcow can use`, {
    next: `write ${name}=http://HOST:PORT, or unset it`,
  });
}

/** Servers of this machine never have a proxy; others not if $no_proxy names them. */
function isExcepted({ hostname, port, protocol }: URL): boolean {
  const host = hostname.replace(/^\[|\]$/g, '').toLowerCase();
  if (host === 'localhost' || isIn('127.0.0.0/8', host) || host === '::1') return true;
  const number = port === '' ? (protocol === 'https:' ? '443' : '80') : port;
  return variable('no_proxy')
    .split(/[,\s]+/)
    .filter((entry) => entry !== '')
    .some((entry) => names(entry.toLowerCase(), host, number));
}

/** `*`, a domain with all below it, `.domain` without itself, an address, a network; or `:port`. */
function names(entry: string, host: string, port: string): boolean {
  if (entry === '*') return true;
  if (entry.includes('/')) return isIn(entry, host);
  const [, name = entry, only = port] = /^(.*[^:\]]|\[.*\]):(\d+)$/.exec(entry) ?? [];
  if (only !== port) return false;
  const bare = name.replace(/^\[|\]$/g, '').replace(/^\*\./, '.');
  if (isIP(bare) !== 0) return bare === host;
  return host === bare || host.endsWith(bare.startsWith('.') ? bare : `.${bare}`);
}

function isIn(network: string, host: string): boolean {
  const [address = '', bits = ''] = network.split('/');
  const family = isIP(address) === 6 ? 'ipv6' : 'ipv4';
  if (isIP(address) === 0 || isIP(host) !== isIP(address) || !/^\d{1,3}$/.test(bits)) return false;
  const list = new BlockList();
  try {
    list.addSubnet(address, Number(bits), family);
  } catch {
    return false; // more bits than an address has
  }
  return list.check(host, family);
}
