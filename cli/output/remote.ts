/** Explains that a command needs bytes of a lazy image that are not here. */
import { isPcowError } from '../../src/engine/errors.js';
import { word } from '../../src/engine/quote.js';
import { Failure } from './errors.js';

/** Any other error is returned as it is. */
export async function locatingRemote(error: unknown): Promise<unknown> {
  if (!isPcowError(error, 'PCOW_REMOTE') || error.remote === undefined) return error;
  const { path } = error.remote;
  const [{ withImage }, { sourceOf }] = await Promise.all([
    import('../../src/images/with-image.js'),
    import('../../src/registry/lazy-layers.js'),
  ]);
  const source = await withImage(path, {}, sourceOf).catch(() => null);
  if (source === null) return error;
  return new Failure(
    'PCOW_REMOTE',
    `${path} lacks bytes that this command needs: they are still in ${source.origin.reference}`,
    `fetch them first: pcow prefetch ${word(path)}`,
  );
}
