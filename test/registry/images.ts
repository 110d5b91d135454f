/** What the tests of push and pull have in common. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import type { ExecutionContext } from 'ava';
import { Image, PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import { pushImage, type PushOptions } from '../../src/registry/index.js';
import { MiB, reading, working } from '../stream/images.js';

export const PLAIN = { plainHttp: true };

/** `golden` with the snapshots v1 (4 MiB of random bytes) and v2 (an eighth of that changed). */
export async function golden(file: string): Promise<void> {
  await Image.create(file, { size: 64 * MiB });
  await working(file, async (image) => {
    await image.write(randomBytes(4 * MiB), 0);
    await image.snapshot('v1');
    await image.write(randomBytes(MiB / 2), 20 * MiB);
    await image.discard(MiB, MiB);
    await image.snapshot('v2');
  });
}

export function pushing(file: string, snapshot: string, reference: string, options: PushOptions) {
  return reading(file, (image) => pushImage(image, snapshot, reference, options));
}

export async function failure(
  t: ExecutionContext,
  work: Promise<unknown>,
  code: PcowErrorCode,
  text: RegExp,
): Promise<PcowError> {
  const error = await t.throwsAsync(work, { instanceOf: PcowError });
  t.is(error.code, code, error.message);
  t.regex(error.message, text);
  return error;
}

export async function skopeo(...words: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('skopeo', ['--insecure-policy', ...words]);
  return stdout;
}

/** The file of credentials that this process uses; it is empty, and another one for each test. */
export async function ownCredentials(directory: string): Promise<string> {
  const file = path.join(directory, 'auth.json');
  await writeFile(file, '{}');
  process.env.REGISTRY_AUTH_FILE = file;
  return file;
}
