/** A guest as the doctor sees it, whoever describes it: a QEMU command line or a domain of libvirt. */

export interface Backend {
  id: string;
  /** As it is written there. */
  path: string;
  /** Bytes; null where it is not said. */
  size: number | null;
  shared: boolean;
  discardData: boolean;
  preallocated: boolean;
  pmem: boolean;
  readOnly: boolean;
  /** Bytes of the file that are left out at its beginning. */
  offset: number;
}

export interface MemoryDevice {
  kind: 'virtio-pmem' | 'nvdimm';
  /** The id of its backend. */
  backend: string;
  unarmed: boolean;
  /** Bytes at the end that hold labels, and not the guest's data. */
  labelSize: number;
}

export interface Guest {
  /** The program that runs it. */
  emulator: string;
  /** Whether the monitor is preloaded, as far as it can be seen here; null: it can't. */
  monitored: boolean | null;
  backends: Backend[];
  /** The types of all memory backends, by their ids. */
  objects: Map<string, string>;
  devices: MemoryDevice[];
  /** Bytes of ordinary memory; null where it is not said. */
  memory: number | null;
  slots: number;
  /** Bytes; null: none may be added. */
  maxMemory: number | null;
  nvdimmMachine: boolean;
  /** The firmware's tables, by which a guest finds its NVDIMMs. */
  acpi: boolean;
  /** The guest is told that what is in its processor's caches survives a power cut. */
  cachesPersist: boolean;
  /** Ids of backends that are ordinary memory of the guest, which it overwrites as it starts: with what says so. */
  ordinary: { backend: string; by: string }[];
  /** Persistent memory of the guest that is no file: descriptions. */
  volatile: string[];
  /** Whether QEMU is to throw away what its disks are written. */
  throwAway: boolean;
  /** Of the processor; null: the default. */
  physicalBits: number | 'host' | null;
  /** Everything is locked in memory. */
  locked: boolean;
  /** What shares the guest's memory with another process: descriptions. */
  vhostUser: string[];
  /** Devices of the host that write into the guest's memory by themselves: descriptions. */
  vfio: string[];
  /** What the doctor can't look into: descriptions. */
  unseen: string[];
  /** How the words of this kind of description are written, for what mends. */
  words: Words;
}

/** How to say it. */
export interface Words {
  share: string;
  discardData: string;
  prealloc: string;
  pmem: string;
  readOnly: string;
  offset: string;
  labels: string;
  cachesPersist: string;
  maxMemory: string;
  slots: string;
  nvdimmMachine: string;
  acpi: string;
  unarmed: string;
  locked: string;
  physicalBits: (bits: number) => string;
  size: (bytes: number) => string;
}

export function emptyGuest(emulator: string, words: Words): Guest {
  return {
    emulator,
    monitored: null,
    backends: [],
    objects: new Map(),
    devices: [],
    memory: null,
    slots: 0,
    maxMemory: null,
    nvdimmMachine: false,
    acpi: true,
    cachesPersist: false,
    ordinary: [],
    volatile: [],
    throwAway: false,
    physicalBits: null,
    locked: false,
    vhostUser: [],
    vfio: [],
    unseen: [],
    words,
  };
}
