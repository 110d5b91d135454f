/** Where the mount of an image directory listens for monitors. */
import { createHash } from 'node:crypto';
import { access, chmod, constants, mkdir } from 'node:fs/promises';
import path from 'node:path';

import { PcowError } from '../engine/index.js';

/** What sockaddr_un takes, less the NUL. */
const MAX_PATH = 107;

/**
 * Depends on the image directory (a real path) alone, so that the next mount of it listens at the same place. Its directory is
 * made where it is missing: the system's, or without the right to that, the user's own.
 */
export async function socketPath(directory: string): Promise<string> {
  const name = `${createHash('sha256').update(directory).digest('hex').slice(0, 32)}.sock`;
  for (const place of ['/run', process.env.XDG_RUNTIME_DIR ?? '']) {
    const file = path.join(place, 'pcow', name);
    if (path.isAbsolute(place) && file.length <= MAX_PATH && (await usable(path.dirname(file)))) {
      return file;
    }
  }
  throw new PcowError(
    'PCOW_PERMISSION',
    'no socket can be made in /run/pcow, nor in $XDG_RUNTIME_DIR/pcow: set XDG_RUNTIME_DIR to a directory of your own',
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
