/** A guest, as the doctor sees it, from a QEMU command line or a libvirt domain. */

export interface Backend {
  id: string;
  /** As written in the description. */
  path: string;
  /** Bytes; null if it is not specified. */
  size: number | null;
  shared: boolean;
  discardData: boolean;
  preallocated: boolean;
  pmem: boolean;
  readOnly: boolean;
  /** Bytes that are skipped at the beginning of the file. */
  offset: number;
}

export interface MemoryDevice {
  kind: 'virtio-pmem' | 'nvdimm';
  /** The id of its backend. */
  backend: string;
  unarmed: boolean;
  /** Bytes at the end that contain labels instead of the guest's data. */
  labelSize: number;
}

export interface Guest {
  /** The program that runs it. */
  emulator: string;
  /** Whether the monitor is preloaded, as far as the description shows; null: unknown. */
  monitored: boolean | null;
  backends: Backend[];
  /** The types of all memory backends, by their ids. */
  objects: Map<string, string>;
  devices: MemoryDevice[];
  /** Bytes of ordinary memory; null if it is not specified. */
  memory: number | null;
  slots: number;
  /** Bytes; null: no memory can be added. */
  maxMemory: number | null;
  nvdimmMachine: boolean;
  /** The firmware's tables, with which a guest finds its NVDIMMs. */
  acpi: boolean;
  /** The guest is told that its processor's caches survive a power cut. */
  cachesPersist: boolean;
  /**
   * The ids of backends that are ordinary memory of the guest, which overwrites them at the start;
   * with the option that says so.
   */
  ordinary: { backend: string; by: string }[];
  /** Persistent memory of the guest that is not a file: descriptions. */
  volatile: string[];
  /** Whether QEMU discards everything that is written to its disks. */
  throwAway: boolean;
  /** Address bits of the processor; null: the default. */
  physicalBits: number | 'host' | null;
  /** All memory is locked. */
  locked: boolean;
  /** Processes that share the guest's memory: descriptions. */
  vhostUser: string[];
  /** Devices of the host that write to the guest's memory directly: descriptions. */
  vfio: string[];
  /** What the doctor cannot check: descriptions. */
  unseen: string[];
  /** How to fix each finding, in the terms of this kind of description. */
  words: Words;
}

/** The terms of this kind of description. */
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
