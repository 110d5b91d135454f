/** Pushes what the readers of a lazy image have needed, so that others fetch it first. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { PcowError } from '../engine/index.js';
import type { ImageTarget } from '../images/find-image.js';
import { asking } from '../images/mount-answers.js';
import { withImage } from '../images/with-image.js';
import { sourceOf } from '../registry/lazy-layers.js';
import { parseTrace } from '../registry/trace.js';
import type { WorkOptions } from './control.js';
import { controlDirectory } from './mount-status.js';

/** The result of pushTraceOf(). */
export interface PushedTrace {
  /** Of the image, with its digest. */
  reference: string;
  /** Of the trace's manifest. */
  digest: string;
  /** How many pieces the trace has. */
  pieces: number;
}

/** `image`: a lazy image, in a mount. */
export async function pushTraceOf(
  { name, file, mount }: ImageTarget,
  options: WorkOptions = {},
): Promise<PushedTrace> {
  if (mount === null) {
    throw new PcowError('PCOW_MOUNT', `${name} is not mounted, and only a mount records a trace`, {
      next: 'mount its directory, start a guest on an image that stands on it, then try again',
    });
  }
  const report = path.join(controlDirectory(mount, name), 'trace');
  const touches = parseTrace(await asking(mount, () => readFile(report), options)) ?? [];
  if (touches.length === 0) {
    throw new PcowError(
      'PCOW_NOT_FOUND',
      `nothing of ${name} has been fetched since the mount began`,
      {
        next: 'start a guest on a new lazy image, then try again',
      },
    );
  }
  const source = await withImage(file, {}, sourceOf);
  if (source === null)
    throw new PcowError('PCOW_NOT_FOUND', `${name} is not lazy any more`, { next: null });
  const { origin, remote } = source;
  const { plainHttp, certificates } = origin;
  const image = { digest: remote.digest, size: remote.manifestSize };
  const { pushTrace } = await import('../registry/trace-store.js');
  const digest = await pushTrace(origin.reference, image, touches, {
    plainHttp,
    certificates,
    signal: options.signal,
  });
  return { reference: origin.reference, digest, pieces: touches.length };
}
