/** The extended attributes of flat files. */
import { refusal } from '../failure.js';
import type { ImageEntry } from '../images/image-entry.js';
import type { Place } from '../place.js';
import { imageStatus } from '../control/status.js';

export const extendedAttributes: ReadonlyMap<
  string,
  (entry: ImageEntry, place: Place) => Promise<string>
> = new Map([
  ['user.pcow.state', async (entry: ImageEntry) => (await entry.state()).state],
  ['user.pcow.chain', chain],
  ['user.pcow.status', imageStatus],
  ['user.pcow.attach', attachSocket],
  ['user.pcow.image', (entry: ImageEntry) => Promise.resolve(entry.identity)],
]);

export function extendedAttributeNames(place: Place): string[] {
  return [...extendedAttributes.keys()].filter(
    (name) => name !== 'user.pcow.attach' || place.socket !== '',
  );
}

/** The socket for monitors (native/attach/protocol.h). */
async function attachSocket(entry: ImageEntry, { socket }: Place): Promise<string> {
  if (socket === '') {
    throw refusal(
      'ENODATA',
      'PCOW_NOT_FOUND',
      `${entry.name} can't be attached: this mount serves no monitors`,
    );
  }
  return Promise.resolve(socket);
}

/**
 * One line for each layer, the active one first: the image file, and @SNAPSHOT if the layer has a
 * name.
 */
async function chain(entry: ImageEntry): Promise<string> {
  const { image } = await entry.view();
  return image
    .info()
    .chain.map(({ path, snapshot }) => (snapshot === null ? path : `${path}@${snapshot}`))
    .join('\n');
}
