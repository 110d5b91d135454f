/**
 * The options with which QEMU maps a flat file as persistent memory: what QEMU asks of sizes and addresses.
 * (Tried with QEMU 7.2; test/cli/qemu-args.test.ts starts the installed QEMU with them.)
 */
import { Failure } from './errors.js';
import { quote } from './quote.js';
import { formatSize, GIB, MIB, sizeArgument } from './size.js';

export const DEVICES = ['virtio-pmem', 'nvdimm'] as const;
export type Device = (typeof DEVICES)[number];

/** QEMU places and KVM maps persistent memory in huge pages: anything else is refused, or falls back to small ones. */
const SIZE_STEP = 2 * MIB;
/** A Linux guest manages its memory in sections of this size; the rest of a last one is lost or refused. */
const SECTION = 128 * MIB;
/** x86 guests have 40 address bits unless told otherwise. */
const DEFAULT_ADDRESS_BITS = 40;

export interface QemuRequest {
  /** The mounted flat file. */
  file: string;
  /** Its size in bytes. */
  size: number;
  device: Device;
  /** Bytes of ordinary memory of the virtual machine. */
  memory: number;
  /** Names the memory backend; the device is called ID-device. */
  id: string;
  /** nvdimm only: tell the guest that its flushes are not durable. */
  unarmed: boolean;
}

export interface QemuOptions {
  args: string[];
  warnings: string[];
}

export function qemuOptions(request: QemuRequest): QemuOptions {
  const { file, size, device, memory, id, unarmed } = request;
  if (size % SIZE_STEP !== 0) {
    const fitting = sizeArgument(Math.ceil(size / SIZE_STEP) * SIZE_STEP);
    throw new Failure(
      'PCOW_INVALID',
      `${quote(file)} has ${size} bytes, which is not a multiple of 2 MiB, as QEMU needs it; the next one is ${fitting}`,
      `pcow resize ${file} ${fitting}`,
    );
  }
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) {
    throw new Failure(
      'PCOW_USAGE',
      `${quote(id)} can't be an id in QEMU`,
      'take letters, digits, “.”, “_” and “-”, beginning with a letter',
    );
  }
  const warnings: string[] = [];
  if (size % SECTION !== 0) {
    const fitting = sizeArgument(Math.ceil(size / SECTION) * SECTION);
    warnings.push(
      `${formatSize(size)} is not a multiple of 128 MiB: some guests can't use all of it, or none ` +
        `(pcow resize ${file} ${fitting})`,
    );
  }
  if (device === 'nvdimm') {
    warnings.push(
      unarmed
        ? 'unarmed=on: the guest knows that its flushes are not durable; Linux makes such a device read-only'
        : 'what a guest flushes by processor instructions alone is not durable on a file that is not DAX: ' +
            'virtio-pmem is, as its flush is an fsync here',
    );
  }

  const maxMemory = memory + Math.ceil(size / GIB) * GIB;
  const bits = addressBits(maxMemory);
  const machine = device === 'nvdimm' ? 'q35,nvdimm=on' : 'q35';
  const backend = `memory-backend-file,id=${id},share=on,mem-path=${escapeValue(file)},size=${size}`;
  const front =
    device === 'nvdimm'
      ? `nvdimm,id=${id}-device,memdev=${id}${unarmed ? ',unarmed=on' : ''}`
      : `virtio-pmem-pci,id=${id}-device,memdev=${id}`;
  return {
    args: [
      ...['-machine', machine],
      ...(bits > DEFAULT_ADDRESS_BITS ? ['-cpu', `max,phys-bits=${bits}`] : []),
      ...['-m', `${memory / MIB}M,slots=1,maxmem=${maxMemory / MIB}M`],
      ...['-object', backend],
      ...['-device', front],
    ],
    warnings,
  };
}

/**
 * How many address bits a guest needs. QEMU puts such memory above the ordinary one, at the next GiB, with room for
 * the 32-bit hole and PCI; what would cross 1 TiB moves above it, because of a hole that AMD machines have there.
 */
function addressBits(maxMemory: number): number {
  const room = maxMemory + 8 * GIB;
  const end = room > 1012 * GIB ? room + 1024 * GIB : room;
  return Math.max(DEFAULT_ADDRESS_BITS, Math.ceil(Math.log2(end)));
}

/** In an option of QEMU a comma ends a value, and two stand for one. */
function escapeValue(value: string): string {
  return value.replaceAll(',', ',,');
}
