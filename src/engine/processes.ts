/**
 * Finds the users of a flat file, with /proc only: a request to the mount's own filesystem could
 * wait for this very process. Processes that this one may not inspect, or that are in another PID
 * namespace, are not found.
 */
import { readdir, readFile, readlink } from 'node:fs/promises';

/** A process that has flat files mapped, shared and writable. */
export interface Mapper {
  pid: number;
  /** Clock ticks since boot: distinguishes it from a later process with the same pid. */
  startTime: number;
  /** The inode numbers of the flat files. */
  inodes: Set<bigint>;
}

/** `device` is "MAJOR:MINOR" in decimal, as in mountinfo. */
export async function mappersOf(device: string, inodes: ReadonlySet<bigint>): Promise<Mapper[]> {
  const wanted = hexDevice(device);
  const mappers: Mapper[] = [];
  for (const pid of await processes()) {
    if (pid === process.pid) {
      continue;
    }
    const mapped = writableMappings(await textOf(`/proc/${pid}/maps`), wanted, inodes);
    if (mapped.size > 0) {
      const startTime = await startTimeOf(pid);
      if (startTime !== null) {
        mappers.push({ pid, startTime, inodes: mapped });
      }
    }
  }
  return mappers;
}

/**
 * Those of `inodes` that a /proc/PID/maps shows as shared and writable mappings. `device` is in
 * hex.
 */
export function writableMappings(
  maps: string,
  device: string,
  inodes: ReadonlySet<bigint>,
): Set<bigint> {
  const found = new Set<bigint>();
  if (!maps.includes(` ${device} `)) {
    return found;
  }
  for (const line of maps.split('\n')) {
    // range permissions offset device inode path
    const [, permissions = '', , lineDevice, inode] = line.split(/ +/, 5);
    if (lineDevice === device && permissions[1] === 'w' && permissions[3] === 's') {
      const number = BigInt(inode ?? 0);
      if (inodes.has(number)) found.add(number);
    }
  }
  return found;
}

/** mountinfo shows a device in decimal, maps in hex with at least two digits. */
export function hexDevice(device: string): string {
  return device
    .split(':')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join(':');
}

/**
 * "PID (COMMAND)" of every process that has a path open or mapped. The path is compared as text
 * only.
 */
export async function usersOf(file: string): Promise<string[]> {
  const users: string[] = [];
  for (const pid of await processes()) {
    if (pid !== process.pid && (await hasOpen(pid, (target) => target === file))) {
      users.push(await describeProcess(pid));
    }
  }
  return users;
}

/** The same for everything below a directory. */
export async function usersBelow(directory: string): Promise<string[]> {
  const below = (target: string) => target === directory || target.startsWith(`${directory}/`);
  const users: string[] = [];
  for (const pid of await processes()) {
    const inside =
      below(await linkOf(`/proc/${pid}/cwd`)) || below(await linkOf(`/proc/${pid}/root`));
    if (pid !== process.pid && (inside || (await hasOpen(pid, below)))) {
      users.push(await describeProcess(pid));
    }
  }
  return users;
}

async function hasOpen(pid: number, matches: (target: string) => boolean): Promise<boolean> {
  for (const fd of await entriesOf(`/proc/${pid}/fd`)) {
    if (matches(await linkOf(`/proc/${pid}/fd/${fd}`))) {
      return true;
    }
  }
  const maps = await textOf(`/proc/${pid}/maps`);
  return maps.split('\n').some((line) => {
    const start = line.indexOf('/');
    return start > 0 && matches(line.slice(start));
  });
}

export async function describeProcess(pid: number): Promise<string> {
  const command = (await textOf(`/proc/${pid}/comm`)).trimEnd();
  return command === '' ? `process ${pid}` : `process ${pid} (${command})`;
}

/** The threads of a process; none if it has ended. */
export async function threadsOf(pid: number): Promise<number[]> {
  return (await entriesOf(`/proc/${pid}/task`)).map(Number);
}

/**
 * One letter, as in proc(5) ("T": stopped by a signal, "t": by a debugger); null if the thread has
 * ended.
 */
export async function stateOf(pid: number, thread: number = pid): Promise<string | null> {
  const fields = await statFields(`/proc/${pid}/task/${thread}/stat`);
  return fields?.[0] ?? null;
}

export async function startTimeOf(pid: number): Promise<number | null> {
  const fields = await statFields(`/proc/${pid}/stat`);
  const field = fields?.[19];
  return field === undefined ? null : Number(field);
}

/**
 * The fields of a stat file, beginning with the third (the state). The second, the command, may
 * contain anything.
 */
async function statFields(file: string): Promise<string[] | null> {
  const text = await textOf(file);
  const end = text.lastIndexOf(') ');
  return end < 0 ? null : text.slice(end + 2).split(' ');
}

/** The pids of all processes that this one can see. */
export async function processes(): Promise<number[]> {
  const names = await readdir('/proc');
  return names.filter((name) => /^[1-9]\d*$/.test(name)).map(Number);
}

/** Empty if the file may not be read, or has just disappeared. */
export async function textOf(file: string): Promise<string> {
  return readFile(file, 'utf8').catch(() => '');
}

export async function linkOf(file: string): Promise<string> {
  return readlink(file).catch(() => '');
}

async function entriesOf(directory: string): Promise<string[]> {
  return readdir(directory).catch(() => []);
}
