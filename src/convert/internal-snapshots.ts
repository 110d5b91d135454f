/**
 * The snapshots inside a qcow2 file: finds and selects them, and gives them names that snapshots of
 * Pcow can have.
 */
import { FORBIDDEN_IN_NAMES, MAX_NAME_LENGTH } from '../engine/index.js';
import { PcowError } from '../engine/errors.js';
import { qemuImg } from './qemu-img.js';
import { quote } from '../engine/quote.js';

export interface InternalSnapshot {
  /** The id that qemu-img uses. */
  id: string;
  /** The name as stored: any text. */
  name: string;
  /** Bytes of the saved state of a running machine; 0: there is none. */
  machineState: number;
}

/** Whether qemu-img can read snapshots in this format. */
export function hasInternalSnapshots(format: string): boolean {
  return format === 'qcow2' || format === 'qcow';
}

/** Oldest first. */
export async function internalSnapshots(
  file: string,
  signal?: AbortSignal,
): Promise<InternalSnapshot[]> {
  const { stdout } = await qemuImg(file, signal, 'info', '--output=json', '--', file);
  const { snapshots = [] } = JSON.parse(stdout) as {
    snapshots?: {
      id: string;
      name: string;
      'vm-state-size': number;
      'date-sec': number;
      'date-nsec': number;
    }[];
  };
  return snapshots
    .sort((a, b) => a['date-sec'] - b['date-sec'] || a['date-nsec'] - b['date-nsec'])
    .map(({ id, name, 'vm-state-size': machineState }) => ({ id, name, machineState }));
}

/** Finds it by its name, or, like qemu-img, by its id. */
export async function internalSnapshot(
  file: string,
  asked: string,
  signal?: AbortSignal,
): Promise<InternalSnapshot> {
  const all = await internalSnapshots(file, signal);
  const found = all.find(({ name }) => name === asked) ?? all.find(({ id }) => id === asked);
  if (found === undefined) {
    const names = all.map(({ name, id }) => (name === '' ? `number ${id}` : quote(name)));
    throw new PcowError('PCOW_NOT_FOUND', `${quote(file)} has no snapshot ${quote(asked)}`, {
      next: names.length === 0 ? 'it has no snapshots' : `it has ${names.join(', ')}`,
    });
  }
  return found;
}

/** The arguments of qemu-img that select it. Names may be ambiguous, ids are not. */
export function chosen(snapshot: InternalSnapshot | null): string[] {
  return snapshot === null ? [] : ['-l', `snapshot.id=${snapshot.id}`];
}

/** A unique valid name for each. */
export function namesFor(snapshots: InternalSnapshot[]): string[] {
  const names: string[] = [];
  for (const { id, name } of snapshots) {
    const possible = shortened(
      [...name].map((sign) => (FORBIDDEN_IN_NAMES.test(sign) ? '-' : sign)).join(''),
    );
    const wanted = possible === '' ? `snapshot-${id}` : possible;
    names.push(names.includes(wanted) ? `${wanted}-${id}` : wanted);
  }
  return names;
}

/** Leaves room for an id after it. */
function shortened(name: string): string {
  let text = name;
  while (Buffer.byteLength(text) > MAX_NAME_LENGTH - 20) text = [...text].slice(0, -1).join('');
  return text;
}
