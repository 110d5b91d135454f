/** References to images outside of this machine: in a registry, or in an OCI layout. */
import path from 'node:path';
import { PcowError } from '../engine/index.js';

/** `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`. */
export interface RegistryReference {
  kind: 'registry';
  /** With its port, if one is given. */
  host: string;
  repository: string;
  /** null: only a digest is given. */
  tag: string | null;
  digest: string | null;
}

/** `oci:DIRECTORY[:TAG][@DIGEST]`. */
export interface LayoutReference {
  kind: 'layout';
  directory: string;
  /** null: none is given. */
  tag: string | null;
  digest: string | null;
}

export type Reference = RegistryReference | LayoutReference;

const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;
const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$/;
const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const LONGEST_REPOSITORY = 255;

/** The tag of an image that is pushed without one. */
const DEFAULT_TAG = 'latest';

export function parseReference(text: string): Reference {
  if (text.startsWith('oci:')) return parseLayout(text, text.slice('oci:'.length));
  const { rest, digest } = withoutDigest(text);
  const slash = rest.indexOf('/');
  const host = slash < 0 ? '' : rest.slice(0, slash);
  if (!isHost(host)) {
    throw invalid(
      text,
      'it does not begin with the host of a registry',
      'write HOST/REPOSITORY:TAG, or oci:DIRECTORY:TAG',
    );
  }
  const { rest: repository, tag } = withoutTag(rest.slice(slash + 1));
  checkTag(text, tag);
  if (
    repository.length > LONGEST_REPOSITORY ||
    !repository.split('/').every((part) => COMPONENT.test(part))
  ) {
    throw invalid(
      text,
      `${JSON.stringify(repository)} is not the name of a repository`,
      'use lower-case letters, digits, and . _ - / between them',
    );
  }
  return {
    kind: 'registry',
    host,
    repository,
    tag: tag ?? (digest === null ? DEFAULT_TAG : null),
    digest,
  };
}

/** The host of a registry, as an argument of `pcow login`. */
export function parseHost(text: string): string {
  if (HOST.test(text)) return text;
  throw new PcowError('PCOW_INVALID', `${JSON.stringify(text)} is not the host of a registry`, {
    next: 'write HOST or HOST:PORT, without https://',
  });
}

/** The text that messages show. */
export function formatReference(reference: Reference): string {
  const { tag, digest } = reference;
  const place =
    reference.kind === 'layout'
      ? `oci:${reference.directory}`
      : `${reference.host}/${reference.repository}`;
  return `${place}${tag === null ? '' : `:${tag}`}${digest === null ? '' : `@${digest}`}`;
}

export function isDigest(value: unknown): value is string {
  return typeof value === 'string' && DIGEST.test(value);
}

/** The file name of an image if no other is given: the last part of the repository. */
export function nameFrom(reference: Reference): string {
  const name =
    reference.kind === 'layout'
      ? path.basename(path.resolve(reference.directory))
      : path.basename(reference.repository);
  return name;
}

function parseLayout(text: string, place: string): LayoutReference {
  const { rest, digest } = withoutDigest(place);
  const { rest: directory, tag } = withoutTag(rest);
  if (directory === '') throw invalid(text, 'it names no directory', 'write oci:DIRECTORY:TAG');
  checkTag(text, tag);
  return { kind: 'layout', directory, tag, digest };
}

/** As for skopeo and docker: a name with a dot or a port is a host, and so is localhost. */
function isHost(host: string): boolean {
  return HOST.test(host) && (host === 'localhost' || /[.:]/.test(host));
}

function withoutDigest(text: string): { rest: string; digest: string | null } {
  const at = text.lastIndexOf('@');
  if (at < 0) return { rest: text, digest: null };
  const digest = text.slice(at + 1);
  if (isDigest(digest)) return { rest: text.slice(0, at), digest };
  throw invalid(
    text,
    `${JSON.stringify(digest)} is not a digest`,
    'a digest is sha256: and 64 hex digits',
  );
}

/** A colon before the last slash belongs to a port or a directory. */
function withoutTag(text: string): { rest: string; tag: string | null } {
  const colon = text.lastIndexOf(':');
  if (colon < 0 || colon < text.lastIndexOf('/')) return { rest: text, tag: null };
  return { rest: text.slice(0, colon), tag: text.slice(colon + 1) };
}

function checkTag(text: string, tag: string | null): void {
  if (tag === null || TAG.test(tag)) return;
  throw invalid(
    text,
    `${JSON.stringify(tag)} is not a tag`,
    'a tag has letters, digits, and . _ - after the first of them',
  );
}

function invalid(text: string, why: string, next: string): PcowError {
  return new PcowError(
    'PCOW_INVALID',
    `${JSON.stringify(text)} names no image in a registry: ${why}`,
    { next },
  );
}
