/**
 * Works on items that arrive one after another: on several at a time, with the results in their
 * order.
 */

/**
 * Runs `work` on up to `width` items at a time. If the items end with an error, the results of those
 * before it come first. When this ends, by an error or because its reader stops, all work that was
 * begun has ended.
 */
export async function* ordered<T, R>(
  items: AsyncIterable<T> | Iterable<T>,
  width: number,
  work: (item: T) => Promise<R>,
): AsyncGenerator<R, void> {
  const begun: Promise<R>[] = [];
  let failure: Failure | null = null;
  try {
    for await (const item of untilFailure(items)) {
      if (item instanceof Failure) {
        failure = item;
        break;
      }
      const one = work(item);
      // It is awaited below. If an earlier one fails first, its own failure is not reported.
      one.catch(() => undefined);
      begun.push(one);
      if (begun.length >= width) yield await begun.shift()!;
    }
    while (begun.length > 0) yield await begun.shift()!;
  } finally {
    await Promise.allSettled(begun);
  }
  if (failure) throw failure.error;
}

class Failure {
  constructor(readonly error: unknown) {}
}

async function* untilFailure<T>(
  items: AsyncIterable<T> | Iterable<T>,
): AsyncGenerator<T | Failure> {
  try {
    yield* items;
  } catch (error) {
    yield new Failure(error);
  }
}
