/** Images in registries for programs outside of Pcow. docs/registry.md describes the artifact. */
import { type Image, PcowError } from '../engine/index.js';
import type { LongOptions } from '../engine/types.js';
import {
  checkFlag,
  checkLimit,
  checkOptions,
  checkPath,
  checkSnapshotName,
} from '../engine/validate.js';
import { removeCredentials, storeCredentials } from './credentials.js';
import { abandonPull } from './hidden-image.js';
import { withStore } from './open-store.js';
import { pull, type Pulled } from './pull.js';
import { push, type Pushed } from './push.js';
import { parseHost } from './reference.js';

export type { Pulled, Pushed };

/** How a registry is reached. */
export interface RegistryOptions {
  /** Files with certificates of authorities to trust, besides those of the system. */
  certificates?: readonly string[] | undefined;
  /** Use HTTP instead of HTTPS. Default: false; then a registry is never accessed without TLS. */
  plainHttp?: boolean | undefined;
}

/** For pushImage. */
export interface PushOptions extends RegistryOptions, LongOptions {}

/** For pullImage. */
export interface PullOptions extends RegistryOptions, LongOptions {
  /** Drop what an existing image holds beyond its snapshots. */
  force?: boolean | undefined;
  /**
   * The image file on which a new image stands: on the newest snapshot there that belongs to the
   * pulled image. Default: a new image stands on no base.
   */
  base?: string | undefined;
  /**
   * Make a new, lazy image: its bytes are fetched when a mount needs them, or by prefetchImage().
   * Not with `force` or `base`.
   */
  lazy?: boolean | undefined;
  /**
   * With `lazy`: the most bytes that the image keeps of what is fetched, at least 64 MiB. What was
   * not used for long is given back, and fetched again when it is needed. Default: it keeps
   * everything.
   */
  limit?: number | undefined;
}

/** Credentials for a registry. */
export interface RegistryLogin {
  /** The user name. */
  username: string;
  /** A password, or a token that the registry gives for it. */
  password: string;
}

/**
 * Pushes a snapshot, with the snapshots on which it stands, to `HOST/REPOSITORY:TAG` or
 * `oci:DIRECTORY:TAG`. What is already there is not sent. The image may be in use. Errors:
 * PCOW_NOT_FOUND for the snapshot, PCOW_PERMISSION, PCOW_IO, PCOW_BUSY, PCOW_CANCELLED; PCOW_LIMIT
 * for more than 1000 snapshots.
 */
export async function pushImage(
  image: Image,
  snapshot: string,
  reference: string,
  options: PushOptions = {},
): Promise<Pushed> {
  checkSnapshotName(snapshot);
  checkOptions('the options of pushImage', options, [
    'certificates',
    'plainHttp',
    'signal',
    'onProgress',
  ]);
  checkFlag('the option "plainHttp"', options.plainHttp);
  const { certificates, plainHttp, ...long } = options;
  return withStore(reference, 'push', { certificates, plainHttp, signal: long.signal }, (store) =>
    push(image, image.snapshotInfo(snapshot).id, store, long),
  );
}

/**
 * Pulls `HOST/REPOSITORY[:TAG][@DIGEST]` or `oci:DIRECTORY[:TAG][@DIGEST]` into the image file at
 * `path`. If there is no such file, it appears when it is complete. If it has snapshots of that
 * image, the missing ones are added. An interrupted pull continues where it stopped. Errors:
 * PCOW_NOT_FOUND, PCOW_EXISTS if the file is another image, PCOW_NOT_AN_IMAGE if the registry has
 * something else, PCOW_CORRUPT, PCOW_PERMISSION, PCOW_IO, PCOW_BUSY, PCOW_LOCKED, PCOW_NO_SPACE,
 * PCOW_CANCELLED.
 */
export async function pullImage(
  reference: string,
  path: string,
  options: PullOptions = {},
): Promise<Pulled> {
  checkPath('the path of the image', path);
  checkOptions('the options of pullImage', options, [
    'certificates',
    'plainHttp',
    'force',
    'base',
    'lazy',
    'limit',
    'signal',
    'onProgress',
  ]);
  checkFlag('the option "plainHttp"', options.plainHttp);
  checkFlag('the option "force"', options.force);
  checkFlag('the option "lazy"', options.lazy);
  if (options.base !== undefined) checkPath('the option "base"', options.base);
  if (options.limit !== undefined) checkLimit(options.limit);
  const { certificates, plainHttp, lazy, limit, ...pulling } = options;
  const { signal, base, force } = pulling;
  const http = { certificates, plainHttp, signal };
  if (limit !== undefined && lazy !== true)
    throw new PcowError('PCOW_INVALID', 'only a lazy image can have a limit');
  if (lazy !== true)
    return withStore(reference, 'pull', http, (store) => pull(store, path, pulling));
  if (base !== undefined || force === true)
    throw new PcowError('PCOW_INVALID', 'a lazy image is new, and stands on no base');
  const { pullLazily } = await import('./lazy-image.js');
  return pullLazily(reference, path, { ...http, limit });
}

/**
 * Drops what an interrupted pullImage() of a new image has kept. Returns whether there was
 * anything.
 */
export async function abandonPulling(path: string): Promise<boolean> {
  checkPath('the path of the image', path);
  return abandonPull(path);
}

/**
 * Lets the registry check the credentials, and stores them where docker, podman and skopeo keep
 * theirs. Returns the name of the file or of the helper. Errors: PCOW_PERMISSION, PCOW_IO.
 */
export async function loginToRegistry(
  host: string,
  { username, password }: RegistryLogin,
  options: RegistryOptions & { signal?: AbortSignal | undefined } = {},
): Promise<string> {
  parseHost(host);
  checkPath('the user name', username);
  // The message must not show the password.
  if (typeof password !== 'string' || password === '' || /\p{Cc}/u.test(password)) {
    throw new PcowError(
      'PCOW_INVALID',
      'the password is not text, is empty, or has a line end or another control character',
    );
  }
  checkOptions('the options of loginToRegistry', options, ['certificates', 'plainHttp', 'signal']);
  const { checkCredentials } = await import('./registry-store.js');
  const credentials = { username, secret: password };
  await checkCredentials(host, credentials, options);
  return storeCredentials(host, credentials);
}

/** Removes the credentials for a registry. Returns whether there were any. */
export async function logoutOfRegistry(host: string): Promise<boolean> {
  return removeCredentials(parseHost(host));
}
