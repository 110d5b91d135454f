/** The connections of a fetcher. After a failure, new ones are made, with credentials read again. */
import type { HttpOptions } from './http.js';
import type { Origin } from './lazy-source.js';
import type { Blob } from './manifest.js';
import { openStore } from './open-store.js';
import type { BlobReader, Store } from './store.js';

interface Session {
  store: Promise<Store>;
  /** By the digest of the blob. */
  readers: Map<string, BlobReader>;
  /** Requests under way. */
  users: number;
}

export class Sessions {
  #present: Session | null = null;

  constructor(
    private readonly origin: Origin,
    private readonly trying: Pick<HttpOptions, 'signal' | 'onFailure'>,
  ) {}

  /** Lets `work` read the blob. If that fails, later calls use other connections. */
  async reading<T>(blob: Blob, work: (reader: BlobReader, name: string) => Promise<T>): Promise<T> {
    const session = (this.#present ??= this.#open());
    session.users++;
    try {
      const store = await session.store;
      let reader = session.readers.get(blob.digest);
      if (reader === undefined) {
        reader = store.openBlob(blob);
        session.readers.set(blob.digest, reader);
      }
      return await work(reader, store.name);
    } catch (error) {
      if (this.#present === session) this.#present = null;
      throw error;
    } finally {
      session.users--;
      if (this.#present !== session && session.users === 0) await closed(session);
    }
  }

  /** No request may be under way. */
  async close(): Promise<void> {
    const session = this.#present;
    this.#present = null;
    if (session !== null) await closed(session);
  }

  #open(): Session {
    const { reference, plainHttp, certificates } = this.origin;
    const store = openStore(reference, 'pull', { plainHttp, certificates, ...this.trying });
    return { store, readers: new Map(), users: 0 };
  }
}

async function closed({ store, readers }: Session): Promise<void> {
  for (const reader of readers.values()) await reader.close();
  await store.then(
    (it) => it.close(),
    () => undefined, // then nothing is open
  );
}
