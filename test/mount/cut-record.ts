/**
 * Checks that cut-writer's file is a consistent cut (test/programs/cut-writer.c has the layout).
 */
const PAGE = 4096;
const MAX_THREADS = 64;
const NUMBER_AT = MAX_THREADS * 8;

export interface CutShape {
  threads: number;
  pages: number;
}

/** The number of bytes of the file that the writer uses. */
export function cutSize({ threads, pages }: CutShape): number {
  return threads * pages * PAGE;
}

/** The last write of each thread in the cut. Fails if the cut is inconsistent. */
export function checkCut(bytes: Buffer, { threads, pages }: CutShape): number[] {
  const numberAt = (thread: number, slot: number) =>
    Number(bytes.readBigUInt64LE((thread * pages + ((slot * 37) % pages)) * PAGE + NUMBER_AT));
  const last = Array.from({ length: threads }, (_, thread) =>
    Math.max(...Array.from({ length: pages }, (__, slot) => numberAt(thread, slot))),
  );
  for (let thread = 0; thread < threads; ++thread) {
    const newest = last[thread] ?? 0;
    for (let number = Math.max(1, newest - pages + 1); number <= newest; ++number) {
      const found = numberAt(thread, number % pages);
      if (found !== number) {
        throw new Error(
          `thread ${thread}: write ${newest} is there, but in place of write ${number} there is ${found}`,
        );
      }
    }
    if (newest === 0) continue;
    const record = (thread * pages + (((newest % pages) * 37) % pages)) * PAGE;
    for (let other = 0; other < threads; ++other) {
      const seen = Number(bytes.readBigUInt64LE(record + other * 8));
      if (seen > (last[other] ?? 0)) {
        throw new Error(
          `write ${newest} of thread ${thread} had seen write ${seen} of thread ${other}, which has ${last[other]}`,
        );
      }
    }
  }
  return last;
}
