/**
 * The Pcow mounts of this machine, as the kernel lists them.
 *
 * Nothing is stored elsewhere: /proc/self/mountinfo is always true, even after a mount has died.
 * Only this list is read, and no mount is accessed, so a mount whose process hangs cannot hang the
 * reader.
 */
import { readdir, readFile, readlink, realpath } from 'node:fs/promises';
import path from 'node:path';

/** The filesystem type that the kernel shows for a Pcow mount. */
export const MOUNT_TYPE = 'fuse.pcow';

/** A mount of an image directory, as the kernel lists it. */
export interface PcowMount {
  /** The image directory, as a real path. */
  directory: string;
  /** The directory with its flat files, as a real path. */
  mountpoint: string;
  /** Whether the mount is read-only. */
  readOnly: boolean;
  /** The FUSE connection: /sys/fs/fuse/connections/<this>. */
  connection: number;
}

/**
 * All Pcow mounts that this process can see. A later mount on the same mountpoint hides the earlier
 * one.
 */
export async function pcowMounts(): Promise<PcowMount[]> {
  return parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8'));
}

/** The mounts of one image directory. `directory` need not be a real path, but must exist. */
export async function mountsOfDirectory(directory: string): Promise<PcowMount[]> {
  const real = await realpath(directory);
  return (await pcowMounts()).filter((mount) => mount.directory === real);
}

/** The Pcow mount that contains a real path, and the path inside of it; null if there is none. */
export async function mountHolding(
  realPath: string,
): Promise<{ mount: PcowMount; inside: string } | null> {
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
  /** Of the mount and of its filesystem. */
  options: string[];
  type: string;
  source: string;
}

/**
 * Everything that is mounted, in mounting order: of two mounts on one mountpoint the later one
 * hides the earlier one.
 */
export async function mountTable(): Promise<MountTableEntry[]> {
  return parseMountTable(await readFile('/proc/self/mountinfo', 'utf8'));
}

/** Another mountpoint of a filesystem, in any mount namespace that this user may inspect. */
export interface OtherMountpoint {
  mountpoint: string;
  /** A process in that mount namespace; null: this process's own namespace. */
  pid: number | null;
}

/**
 * Where the filesystem with this device is mounted: includes bind mounts, and copies in other mount
 * namespaces.
 */
export async function mountpointsOfDevice(device: string): Promise<OtherMountpoint[]> {
  const own = await readlink('/proc/self/ns/mnt');
  const found: OtherMountpoint[] = [];
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
          found.push({ mountpoint: entry.mountpoint, pid: namespace === own ? null : Number(pid) });
        }
      }
    } catch {
      // The process has ended, or this user may not inspect it.
    }
  }
  return found;
}

function parseMountTable(text: string): MountTableEntry[] {
  const entries: MountTableEntry[] = [];
  for (const line of text.split('\n')) {
    // id parent major:minor root mount-point options [optional fields …] - type source
    // super-options
    const [before, after] = line.split(' - ', 2);
    if (before === undefined || after === undefined) {
      continue;
    }
    const [, , device, , mountpoint, options = ''] = before.split(' ');
    const [type, source, superOptions = ''] = after.split(' ');
    if (
      device === undefined ||
      mountpoint === undefined ||
      type === undefined ||
      source === undefined
    ) {
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
    // Lines are in mounting order, so an earlier mount on this mountpoint is hidden now.
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

/** The kernel writes a space, tab, newline or backslash in a path as three octal digits. */
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
