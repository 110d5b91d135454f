/** The extended attributes of flat files. `user.pcow.attach` is reserved. */
import type { ImageEntry } from './image-entry.js';
import { imageStatus } from './status.js';

export const extendedAttributes: ReadonlyMap<string, (entry: ImageEntry) => Promise<string>> = new Map([
  ['user.pcow.state', async (entry: ImageEntry) => (await entry.state()).state],
  ['user.pcow.chain', chain],
  ['user.pcow.status', imageStatus],
]);

export const extendedAttributeNames = [...extendedAttributes.keys()];

/** One line for each layer, the active one first: the image file, and @SNAPSHOT where the layer has a name. */
async function chain(entry: ImageEntry): Promise<string> {
  const { image } = await entry.view();
  return image
    .info()
    .chain.map(({ path, snapshot }) => (snapshot === null ? path : `${path}@${snapshot}`))
    .join('\n');
}
