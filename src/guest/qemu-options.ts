/**
 * The QEMU options for mapping a flat file as persistent memory: what QEMU requires of sizes and
 * addresses. (Tested with QEMU 7.2; test/cli/qemu-args.test.ts starts the installed QEMU with
 * them.)
 */
import { PcowError } from '../engine/errors.js';
import { quote, word } from '../engine/quote.js';
import { formatSize, GIB, MIB, sizeArgument } from '../images/sizes.js';

/**
 * What a guest sees: a device whose flush is an fsync of the image, or one that is flushed by
 * processor instructions.
 */
export type Device = 'virtio-pmem' | 'nvdimm';

export const DEVICES: readonly Device[] = ['virtio-pmem', 'nvdimm'];

/**
 * QEMU aligns and KVM maps persistent memory in huge pages: other sizes are refused, or use small
 * pages.
 */
export const SIZE_STEP = 2 * MIB;
/**
 * A Linux guest manages its memory in sections of this size; an incomplete last section is lost or
 * refused.
 */
export const SECTION = 128 * MIB;
/** x86 guests have 40 address bits by default. */
export const DEFAULT_ADDRESS_BITS = 40;

/** An image that a guest will have as memory. */
export interface Backing {
  /** The mounted flat file. */
  file: string;
  /** Its size in bytes. */
  size: number;
  /** Whether the image file is in persistent memory (docs/durability.md). Default: false. */
  persistent?: boolean | undefined;
  /** The id of the memory backend; the device's id is ID-device. */
  id: string;
}

/** For qemuOptions(). */
export interface QemuRequest {
  /** In the order in which the guest sees them. */
  images: Backing[];
  /** The kind of device that the guest sees. */
  device: Device;
  /** Bytes of ordinary memory of the virtual machine. */
  memory: number;
  /** nvdimm only: tell the guest that its flushes are not durable. */
  unarmed: boolean;
}

/** The result of qemuOptions(). */
export interface QemuOptions {
  /** Words of QEMU's command line. */
  args: string[];
  /** Sentences for people. */
  warnings: string[];
}

/**
 * The options with which QEMU has images as memory. Errors: PCOW_INVALID for a size that QEMU does
 * not accept.
 */
export function qemuOptions(request: QemuRequest): QemuOptions {
  const { images, device, memory, unarmed } = request;
  const maxMemory = maxMemoryOf(request);
  const bits = addressBits(maxMemory);
  const machine = device === 'nvdimm' ? 'q35,nvdimm=on' : 'q35';
  return {
    args: [
      ...['-machine', machine],
      ...(bits > DEFAULT_ADDRESS_BITS ? ['-cpu', `max,phys-bits=${bits}`] : []),
      ...['-m', `${memory / MIB}M,slots=${images.length},maxmem=${maxMemory / MIB}M`],
      ...images.flatMap((image) => [
        '-object',
        backendOf(image, device),
        '-device',
        deviceOf(image, device, unarmed),
      ]),
    ],
    warnings: warningsFor(request),
  };
}

/** The value of -object. */
export function backendOf({ file, size, id, persistent }: Backing, device: Device): string {
  const backend = `memory-backend-file,id=${id},share=on,mem-path=${escapeValue(file)},size=${size}`;
  return persistent === true && device === 'nvdimm' ? `${backend},pmem=on` : backend;
}

/** The value of -device. */
export function deviceOf({ id }: Backing, device: Device, unarmed: boolean): string {
  const common = `id=${id}-device,memdev=${id}`;
  return device === 'nvdimm'
    ? `nvdimm,${common}${unarmed ? ',unarmed=on' : ''}`
    : `virtio-pmem-pci,${common}`;
}

/** The warnings for any virtual machine. Fails if QEMU would not accept an image. */
export function warningsFor({
  images,
  device,
  unarmed,
}: Pick<QemuRequest, 'images' | 'device' | 'unarmed'>): string[] {
  const warnings: string[] = [];
  for (const { file, size } of images) {
    if (size % SIZE_STEP !== 0) {
      const fitting = sizeArgument(Math.ceil(size / SIZE_STEP) * SIZE_STEP);
      throw new PcowError(
        'PCOW_INVALID',
        `${quote(file)} has ${size} bytes, but QEMU needs a multiple of 2 MiB; the next one is ${fitting}`,
        { next: `pcow resize ${word(file)} ${fitting}` },
      );
    }
    if (size % SECTION !== 0) {
      warnings.push(
        `${quote(file)}: ${sectionWarning(size)} (pcow resize ${word(file)} ${nextSection(size)})`,
      );
    }
  }
  if (device === 'nvdimm') warnings.push(...nvdimmWarnings(images, unarmed));
  return warnings;
}

function nvdimmWarnings(images: Backing[], unarmed: boolean): string[] {
  if (unarmed) {
    return [
      'unarmed=on: the guest knows that its flushes are not durable; Linux makes such a device read-only',
    ];
  }
  const persistent = images.filter((image) => image.persistent === true);
  return [
    ...persistent.map(({ file }) => `${quote(file)}: ${PMEM_ON_WARNING}`),
    ...(persistent.length < images.length ? [NVDIMM_WARNING] : []),
  ];
}

export const PMEM_ON_WARNING =
  'pmem=on: the image is in persistent memory, and what a guest flushes by processor instructions is durable ' +
  'if QEMU runs under the monitor (pcow run)';

export const NVDIMM_WARNING =
  'what a guest flushes by processor instructions alone is not durable on a file that is not DAX: ' +
  'virtio-pmem is, as its flush is an fsync here';

export function sectionWarning(size: number): string {
  return `${formatSize(size)} is not a multiple of 128 MiB: some guests can't use all of it, or none`;
}

export function nextSection(size: number): string {
  return sizeArgument(Math.ceil(size / SECTION) * SECTION);
}

/** Bytes, a multiple of 1 GiB for each image, which leaves room for alignment. */
export function maxMemoryOf({ images, memory }: Pick<QemuRequest, 'images' | 'memory'>): number {
  return images.reduce((sum, { size }) => sum + Math.ceil(size / GIB) * GIB, memory);
}

/** A QEMU id for each image: the given one, with a number if there are several. */
export function backingIds(given: string | undefined, count: number): string[] {
  if (given !== undefined && !/^[A-Za-z][A-Za-z0-9._-]*$/.test(given)) {
    throw new PcowError('PCOW_USAGE', `${quote(given)} can't be an id in QEMU`, {
      next: 'use letters, digits, “.”, “_” and “-”, and begin with a letter',
    });
  }
  return given !== undefined && count === 1
    ? [given]
    : Array.from({ length: count }, (_, number) => `${given ?? 'pcow'}${number}`);
}

/**
 * The number of address bits that a guest needs. QEMU puts this memory above the ordinary memory,
 * at the next GiB, with room for the 32-bit hole and PCI. Memory that would cross 1 TiB moves above
 * it, because AMD machines have a hole there.
 */
export function addressBits(maxMemory: number): number {
  const room = maxMemory + 8 * GIB;
  const end = room > 1012 * GIB ? room + 1024 * GIB : room;
  return Math.max(DEFAULT_ADDRESS_BITS, Math.ceil(Math.log2(end)));
}

/** In a QEMU option a comma ends a value; two commas stand for one. */
function escapeValue(value: string): string {
  return value.replaceAll(',', ',,');
}
