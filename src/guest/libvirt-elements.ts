/**
 * What a libvirt domain needs to have images as memory. The devices are passed to QEMU as
 * arguments. libvirt's own <memory> with the model nvdimm touches every page at the start, which
 * fills a thin image, and with the model virtio-pmem it does not start with libvirt 9.0. (Tested
 * with libvirt 9.0 and QEMU 7.2 of Debian 12.)
 */
import { PcowError } from '../engine/errors.js';
import { type Backing, backendOf, type Device, deviceOf, maxMemoryOf } from './qemu-options.js';

const KIB = 1024;

/**
 * The slots on the guest's PCI bus that libvirt, which counts from 1, gives to its own devices
 * last.
 */
const FIRST_SLOT = 0x10;
const LAST_SLOT = 0x1e;

/** For libvirtElements(). */
export interface LibvirtRequest {
  /** In the order in which the guest sees them. */
  images: Backing[];
  /** The kind of device that the guest sees. */
  device: Device;
  /** Bytes of ordinary memory of the virtual machine. */
  memory: number;
  /** The number of processors. */
  cpus: number;
  /** nvdimm only: tell the guest that its flushes are not durable. */
  unarmed: boolean;
  /** The library that QEMU preloads; null: without the monitor. */
  monitor: string | null;
  /** Whether KVM is available; only KVM can pass the host's processor through. */
  kvm: boolean;
}

/**
 * The elements of <domain> with which libvirt starts a guest that has images as memory. Errors:
 * PCOW_LIMIT if there are too many images.
 */
export function libvirtElements(request: LibvirtRequest): string {
  const { images, memory, cpus, monitor, kvm } = request;
  return [
    `<maxMemory slots='${images.length}' unit='KiB'>${maxMemoryOf(request) / KIB}</maxMemory>`,
    `<vcpu>${cpus}</vcpu>`,
    kvm ? `<cpu mode='host-passthrough'>` : '<cpu>',
    `  <numa>`,
    `    <cell id='0' cpus='${allOf(cpus)}' memory='${memory / KIB}' unit='KiB'/>`,
    `  </numa>`,
    `</cpu>`,
    `<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>`,
    ...argumentsOf(request).map((argument) => `  <arg value='${escaped(argument)}'/>`),
    ...(monitor === null ? [] : [`  <env name='LD_PRELOAD' value='${escaped(monitor)}'/>`]),
    `</commandline>`,
  ].join('\n');
}

/** The processor list of a NUMA cell that has all processors. */
export function allOf(cpus: number): string {
  return cpus === 1 ? '0' : `0-${cpus - 1}`;
}

/** `taken`: slots on the first bus that other devices have. */
export function argumentsOf(
  { images, device, unarmed }: Pick<LibvirtRequest, 'images' | 'device' | 'unarmed'>,
  taken: ReadonlySet<number> = new Set(),
): string[] {
  const all = Array.from({ length: LAST_SLOT - FIRST_SLOT + 1 }, (_, at) => FIRST_SLOT + at);
  const free = all.filter((slot) => !taken.has(slot));
  if (images.length > free.length) {
    throw new PcowError(
      'PCOW_LIMIT',
      `a domain can have ${free.length} images at most, not ${images.length}`,
    );
  }
  return [
    ...(device === 'nvdimm' ? ['-machine', 'nvdimm=on'] : []),
    ...images.flatMap((image, at) => {
      const place = device === 'nvdimm' ? '' : `,bus=pcie.0,addr=0x${(free[at] ?? 0).toString(16)}`;
      return [
        '-object',
        backendOf(image, device),
        '-device',
        deviceOf(image, device, unarmed) + place,
      ];
    }),
  ];
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
};

/** Escapes an attribute. By names, not numbers, because not every parser accepts those. */
export function escaped(text: string): string {
  return text.replace(/[&<>'"]/g, (character) => ENTITIES[character] ?? character);
}
