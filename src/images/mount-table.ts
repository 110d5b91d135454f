/**
 * The Pcow mounts of this machine, as the kernel lists them.
 *
 * Nothing is stored anywhere: /proc/self/mountinfo is always true, also after a mount died.
 * It is read, never stat'ed through, so a mount whose process hangs can't hang the reader.
 */
import { readdir, readFile, readlink, realpath } from 'node:fs/promises';
import path from 'node:path';

/** The file system type that the kernel shows for a Pcow mount. */
export const MOUNT_TYPE = 'fuse.pcow';

/** A mount of an image directory, as the kernel lists it. */
export interface PcowMount {
  /** The image directory, as a real path. */
  directory: string;
  /** Where its flat files are, as a real path. */
  mountpoint: string;
  /** Whether nothing can be written in it. */
  readOnly: boolean;
  /** The FUSE connection: /sys/fs/fuse/connections/<this>. */
  connection: number;
}

/** Every Pcow mount that this process can see; a later one on the same mount point hides the earlier. */
export async function pcowMounts(): Promise<PcowMount[]> {
  return parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8'));
}

/** The mounts of one image directory. `directory` need not be a real path, but must exist. */
export async function mountsOfDirectory(directory: string): Promise<PcowMount[]> {
  const real = await realpath(directory);
  return (await pcowMounts()).filter((mount) => mount.directory === real);
}

/** The Pcow mount that a real path lies in, and the path inside of it; null where it lies elsewhere. */
export async function mountHolding(realPath: string): Promise<{ mount: PcowMount; inside: string } | null> {
  for (const mount of await pcowMounts()) {
    if (realPath === mount.mountpoint) {
      return { mount, inside: '' };
    }
    if (realPath.startsWith(mount.mountpoint + path.sep)) {
      return { mount, inside: realPath.slice(mount.mountpoint.length + 1) };
    }
  }
  return null;
}

/** One line of the kernel's list of mounts. */
export interface MountTableEntry {
  /** "MAJOR:MINOR" in decimal. */
  device: string;
  mountpoint: string;
  /** Of the mount and of its file system. */
  options: string[];
  type: string;
  source: string;
}

/** Everything that is mounted, in mounting order: of two on one mountpoint the later one hides the earlier. */
export async function mountTable(): Promise<MountTableEntry[]> {
  return parseMountTable(await readFile('/proc/self/mountinfo', 'utf8'));
}

/** Where a file system is mounted besides, in any mount namespace that this user may look into. */
export interface OtherPlace {
  mountpoint: string;
  /** A process of that mount namespace; null: our own. */
  pid: number | null;
}

/** Where the file system with this device is mounted: bind mounts of it, and copies in other mount namespaces. */
export async function placesOfDevice(device: string): Promise<OtherPlace[]> {
  const own = await readlink('/proc/self/ns/mnt');
  const places: OtherPlace[] = [];
  const seen = new Set<string>();
  for (const pid of ['self', ...(await readdir('/proc')).filter((name) => /^\d+$/.test(name))]) {
    try {
      const namespace = await readlink(`/proc/${pid}/ns/mnt`);
      if (seen.has(namespace)) {
        continue;
      }
      seen.add(namespace);
      for (const entry of parseMountTable(await readFile(`/proc/${pid}/mountinfo`, 'utf8'))) {
        if (entry.device === device) {
          places.push({ mountpoint: entry.mountpoint, pid: namespace === own ? null : Number(pid) });
        }
      }
    } catch {
      // It has ended, or is not ours to look at.
    }
  }
  return places;
}

function parseMountTable(text: string): MountTableEntry[] {
  const entries: MountTableEntry[] = [];
  for (const line of text.split('\n')) {
    // id parent major:minor root mount-point options [optional fields …] - type source super-options
    const [before, after] = line.split(' - ', 2);
    if (before === undefined || after === undefined) {
      continue;
    }
    const [, , device, , mountpoint, options = ''] = before.split(' ');
    const [type, source, superOptions = ''] = after.split(' ');
    if (device === undefined || mountpoint === undefined || type === undefined || source === undefined) {
      continue;
    }
    entries.push({
      device,
      mountpoint: unescape(mountpoint),
      options: `${options},${superOptions}`.split(','),
      type,
      source: unescape(source),
    });
  }
  return entries;
}

/** The Pcow mounts in the text of a mountinfo file (proc(5)); exported for its test. */
export function parseMountInfo(text: string): PcowMount[] {
  const byMountpoint = new Map<string, PcowMount>();
  for (const { device, mountpoint, options, type, source } of parseMountTable(text)) {
    // Lines come in mounting order, so whatever was here before is hidden now.
    byMountpoint.delete(mountpoint);
    if (type === MOUNT_TYPE) {
      byMountpoint.set(mountpoint, {
        directory: source,
        mountpoint,
        readOnly: options.includes('ro'),
        connection: Number(device.split(':')[1]),
      });
    }
  }
  return [...byMountpoint.values()];
}

/** The kernel writes space, tab, newline and backslash of a path as three octal digits. */
function unescape(field: string): string {
  if (!field.includes('\\')) {
    return field;
  }
  const bytes: number[] = [];
  const raw = Buffer.from(field, 'utf8');
  for (let i = 0; i < raw.length; i += 1) {
    const octal = /^\\([0-7]{3})$/.exec(raw.toString('latin1', i, i + 4));
    if (octal?.[1] === undefined) {
      bytes.push(raw[i] ?? 0);
    } else {
      bytes.push(parseInt(octal[1], 8));
      i += 3;
    }
  }
  return Buffer.from(bytes).toString('utf8');
}
