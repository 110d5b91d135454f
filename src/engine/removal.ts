/** Deletes a whole image at rest. */
import { identify, takingAway } from './dependants.js';
import { isPcowError } from './errors.js';
import { lockWriter } from './file-lock.js';
import { removeName } from './names.js';

/**
 * Deletes an image file, unless a process has it open for writing (PCOW_LOCKED) or an image of its
 * directory stands on it (PCOW_IN_USE). Damaged images and images without their base can be
 * deleted; a file that is not an image is PCOW_NOT_AN_IMAGE. Durable when the promise resolves.
 */
export async function removeImage(file: string): Promise<void> {
  await identify(file).catch((error: unknown) => {
    if (!isPcowError(error, 'PCOW_CORRUPT')) throw error;
  });
  const writer = await lockWriter(file);
  try {
    await takingAway({ file, what: `${file} can't be deleted` }, () => removeName(file));
  } finally {
    writer.release();
  }
}
