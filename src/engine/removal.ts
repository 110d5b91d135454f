/** Deleting a whole image at rest. */
import { identify, takingAway } from './dependants.js';
import { isPcowError } from './errors.js';
import { lockWriter } from './file-lock.js';
import { removeName } from './names.js';

/**
 * Deletes an image file that nobody has open for writing (PCOW_LOCKED) and no image of its directory stands on (PCOW_IN_USE). A damaged
 * image, or one whose base is missing, is deleted as well; what is no image is PCOW_NOT_AN_IMAGE. Durable when it returns.
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
