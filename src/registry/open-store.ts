/** Opens the store to which a reference leads. The HTTP module is loaded only if it is needed. */
import { PcowError } from '../engine/index.js';
import type { HttpOptions } from './http.js';
import { type Reference, parseReference } from './reference.js';
import type { Store } from './store.js';

/** Opens the store to which the text refers, while `work` runs. */
export async function withStore<T>(
  text: string,
  doing: 'push' | 'pull',
  options: HttpOptions,
  work: (store: Store) => Promise<T>,
): Promise<T> {
  const store = await openStore(text, doing, options);
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

/** The caller closes it. */
export async function openStore(
  text: string,
  doing: 'push' | 'pull',
  options: HttpOptions,
): Promise<Store> {
  const reference: Reference = parseReference(text);
  if (doing === 'push' && reference.digest !== null) {
    throw new PcowError(
      'PCOW_INVALID',
      `${JSON.stringify(text)} has a digest, which a push cannot choose`,
      {
        next: 'name a tag: REGISTRY/REPOSITORY:TAG',
      },
    );
  }
  if (reference.kind === 'layout') {
    const { LayoutStore } = await import('./layout.js');
    return new LayoutStore(reference);
  }
  const { RegistryStore } = await import('./registry-store.js');
  return new RegistryStore(reference, { ...options, forWriting: doing === 'push' });
}
