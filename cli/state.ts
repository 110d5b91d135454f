/** What state an image file is in, in words. */
import type { ImageInfo } from '../src/engine/index.js';

/** `open`: somebody writes it; `closed`: properly; `unclean`: its writer died, and the next one recovers it. */
export type State = 'open' | 'closed' | 'unclean';

export function stateOf(image: ImageInfo): State {
  if (image.holder !== null) {
    return 'open';
  }
  return image.clean ? 'closed' : 'unclean';
}

export function describeState(image: ImageInfo): string {
  switch (stateOf(image)) {
    case 'open':
      return `open for writing by process ${image.holder?.pid ?? '?'} (${image.holder?.command ?? '?'})`;
    case 'closed':
      return 'closed';
    case 'unclean':
      return 'not closed by its last writer; the next one recovers it';
  }
}
