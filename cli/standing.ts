/** Images that stand on other images must not lose what they stand on. */
import path from 'node:path';
import { saidOf } from '../src/engine/dependants.js';
import { dependants } from '../src/engine/index.js';
import { Failure } from './errors.js';

/**
 * Fails where images in the same directory stand on an image file: on any of its layers, or on the given one. `what`
 * begins the sentence, such as “vm1@one can't be deleted”.
 */
export async function refuseWhereStoodOn(file: string, what: string, layer?: number): Promise<void> {
  const standing = (await dependants(path.dirname(file), file)).filter(
    (dependant) => layer === undefined || dependant.layer === layer,
  );
  if (standing.length > 0) {
    throw new Failure('PCOW_IN_USE', `${what}: ${saidOf(standing)}`);
  }
}
