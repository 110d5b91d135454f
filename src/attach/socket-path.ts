/** The path at which the mount of an image directory listens for monitors. */
import { createHash } from 'node:crypto';
import { access, chmod, constants, mkdir } from 'node:fs/promises';
import path from 'node:path';

import { PcowError } from '../engine/index.js';

/** The length of a path in sockaddr_un, without the NUL. */
const MAX_PATH = 107;

/**
 * The path depends only on the image directory (a real path), so that the next mount of the
 * directory listens at the same path. Makes the socket's directory if it is missing: in /run, or,
 * without the right to do that, in the user's runtime directory.
 */
export async function socketPath(directory: string): Promise<string> {
  const name = `${createHash('sha256').update(directory).digest('hex').slice(0, 32)}.sock`;
  for (const parent of ['/run', process.env.XDG_RUNTIME_DIR ?? '']) {
    const file = path.join(parent, 'pcow', name);
    if (path.isAbsolute(parent) && file.length <= MAX_PATH && (await usable(path.dirname(file)))) {
      return file;
    }
  }
  throw new PcowError(
    'PCOW_PERMISSION',
    'cannot make a socket in /run/pcow or in $XDG_RUNTIME_DIR/pcow: set XDG_RUNTIME_DIR to a directory of your own',
  );
}

async function usable(directory: string): Promise<boolean> {
  try {
    if ((await mkdir(directory, { recursive: true })) !== undefined) {
      await chmod(directory, 0o755);
    }
    await access(directory, constants.W_OK | constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
