/** Applies the records of one stream to the active layer of an image, up to the end record. */
import { type Image, type LongOptions, PcowError } from '../engine/index.js';
import { type Begin, type End, parseEnd } from './header.js';
import { ordered } from './ordered.js';
import {
  chained,
  corruptStream,
  type RecordReader,
  RecordType,
  type StreamRecord,
} from './record.js';

export interface ApplyOptions extends LongOptions {
  /**
   * Called after a record was applied, with the end of its range and the number of bytes written.
   */
  onApplied?: ((end: number, written: number) => Promise<void>) | undefined;
}

/** Records that are applied at the same time: their ranges are apart. */
const WIDTH = 4;

/** Returns when the end record has confirmed that nothing is missing. Nothing is synced yet. */
export async function applyStream(
  image: Image,
  begin: Begin,
  reader: RecordReader,
  { signal, onProgress, onApplied }: ApplyOptions,
): Promise<End> {
  const found: End = { records: 0, data: 0, zeros: 0, checksum: 0 };
  const stopIfAborted = () => {
    if (!signal?.aborted) return;
    throw new PcowError(
      'PCOW_CANCELLED',
      'receiving was stopped; the data received so far is kept',
      { cause: signal.reason },
    );
  };
  stopIfAborted();
  let data = 0;
  const applying = ordered(checkedRecords(reader, begin, found), WIDTH, (record) =>
    apply(image, record),
  );
  for await (const { offset, length, payload } of applying) {
    data += payload.length;
    onProgress?.(data, begin.data);
    await onApplied?.(offset + length, payload.length);
    stopIfAborted();
  }
  return found;
}

/** The records up to the end record, which they must match. `found`: what they have together. */
async function* checkedRecords(
  reader: RecordReader,
  begin: Begin,
  found: End,
): AsyncGenerator<StreamRecord> {
  let end = begin.resumedAt;
  for (;;) {
    const record = await reader.must();
    if (record.type === RecordType.end) {
      const told = parseEnd(record.payload);
      const same = (['records', 'data', 'zeros', 'checksum'] as const).every(
        (field) => told[field] === found[field],
      );
      if (!same) throw corruptStream('records are missing or out of order');
      return;
    }
    checkRange(record, end, begin.size);
    found[record.type === RecordType.data ? 'data' : 'zeros'] += record.length;
    found.records++;
    found.checksum = chained(found.checksum, record.checksum);
    end = record.offset + record.length;
    yield record;
  }
}

async function apply(image: Image, record: StreamRecord): Promise<StreamRecord> {
  const { type, offset, length, payload } = record;
  if (type === RecordType.data) await image.write(payload, offset);
  else await image.discard(offset, length);
  return record;
}

function checkRange(
  { type, offset, length, payload }: StreamRecord,
  end: number,
  size: number,
): void {
  if (type !== RecordType.data && type !== RecordType.zeros)
    throw corruptStream('a record has an unknown type');
  if (offset < end) throw corruptStream('the ranges are out of order');
  if (length === 0 || !(offset + length <= size))
    throw corruptStream('a range is outside of the image');
  if (payload.length !== (type === RecordType.data ? length : 0))
    throw corruptStream('the length of a record differs from its range');
}
