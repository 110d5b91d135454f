/** Parses the XML of a libvirt domain into a Guest. */
import { XMLParser, XMLValidator } from 'fast-xml-parser';
import { Failure } from '../output/errors.js';
import { quote } from '../../src/engine/quote.js';
import { readOptions } from './command-line.js';
import { emptyGuest, type Guest, type Words } from './guest.js';

const WORDS: Words = {
  share: "give it access='shared'",
  discardData: "leave discard='yes' and <discard/> out",
  prealloc: '“pcow libvirt-xml” prints arguments for QEMU instead',
  pmem: 'remove <pmem/> from its <source>',
  readOnly: 'remove readonly=on from its -object',
  offset: 'remove offset=… from its -object',
  labels: 'remove <label> from its <target>',
  cachesPersist: 'remove nvdimm-persistence=cpu from -machine',
  maxMemory: 'add <maxMemory>, as “pcow libvirt-xml” does',
  slots: "give <maxMemory> more slots='NUMBER'",
  nvdimmMachine: 'add the argument -machine nvdimm=on, as “pcow libvirt-xml --device nvdimm” does',
  acpi: 'add <acpi/> to <features>',
  unarmed: 'use virtio-pmem, or “pcow libvirt-xml --device nvdimm --unarmed”',
  locked: 'remove <locked/> from <memoryBacking>',
  physicalBits: () => "<cpu mode='host-passthrough'>, with <maxphysaddr mode='passthrough'/>",
  size: (bytes) => `<size unit='KiB'>${bytes / 1024}</size> in its <target>`,
};

type Element = Record<string, unknown>;

export function guestOfDomain(xml: string, file: string): Guest {
  const valid = XMLValidator.validate(xml);
  if (valid !== true) {
    throw new Failure(
      'PCOW_INVALID',
      `${quote(file)} is not XML: ${valid.err.msg} (line ${valid.err.line})`,
      'virsh dumpxml NAME',
    );
  }
  const parser = new XMLParser({
    ignoreAttributes: false,
    attributeNamePrefix: '@',
    removeNSPrefix: true,
    parseTagValue: false,
    isArray: (name) =>
      [
        'memory',
        'hostdev',
        'interface',
        'disk',
        'filesystem',
        'arg',
        'env',
        'vsock',
        'cell',
      ].includes(name),
  });
  const { domain } = parser.parse(xml) as { domain?: Element };
  if (domain === undefined || typeof domain !== 'object') {
    throw new Failure(
      'PCOW_INVALID',
      `${quote(file)} has no <domain>: it does not describe a guest of libvirt`,
      'virsh dumpxml NAME',
    );
  }
  return guestOf(domain);
}

function guestOf(domain: Element): Guest {
  const devices = child(domain, 'devices');
  const guest = emptyGuest(text(devices.emulator) || 'qemu-system-x86_64', WORDS);
  const backing = child(domain, 'memoryBacking');
  guest.locked = 'locked' in backing;
  guest.acpi = 'acpi' in child(domain, 'features');
  guest.maxMemory = 'maxMemory' in domain ? bytesOf(domain.maxMemory) : null;
  guest.slots = Number(attribute(domain.maxMemory, 'slots') ?? 0);
  const cells = list(child(child(domain, 'cpu'), 'numa').cell);
  guest.memory =
    cells.length > 0
      ? cells.reduce<number>(
          (sum, cell) => sum + bytes(attribute(cell, 'memory') ?? '0', attribute(cell, 'unit')),
          0,
        )
      : bytesOf(list(domain.memory)[0]);
  const mode = attribute(domain.cpu, 'mode');
  guest.physicalBits =
    mode === 'host-passthrough'
      ? 'host'
      : Number(attribute(child(domain, 'cpu').maxphysaddr, 'bits')) || null;

  for (const [at, memory] of list(devices.memory).entries())
    readMemory(guest, backing, memory as Element, `memory${at}`);
  for (const [tag, kind] of [
    ['interface', 'vhostuser'],
    ['disk', 'vhostuser'],
  ] as const) {
    for (const device of list(devices[tag]))
      if (attribute(device, 'type') === kind) guest.vhostUser.push(`<${tag} type='${kind}'>`);
  }
  for (const device of list(devices.filesystem)) {
    if (attribute(child(device as Element, 'driver'), 'type') === 'virtiofs')
      guest.vhostUser.push('<filesystem> by virtiofs');
  }
  for (const device of list(devices.hostdev)) {
    const type = attribute(device, 'type');
    if (type === 'pci' || type === 'mdev') guest.vfio.push(`<hostdev type='${type}'>`);
  }

  const commandLine = child(domain, 'commandline');
  readOptions(
    guest,
    list(commandLine.arg).map((arg) => attribute(arg, 'value') ?? ''),
  );
  const preload = list(commandLine.env).find(
    (variable) => attribute(variable, 'name') === 'LD_PRELOAD',
  );
  // <emulator> may name a wrapper.
  guest.monitored = (attribute(preload, 'value') ?? '').includes('libpcow-monitor.so')
    ? true
    : 'emulator' in devices
      ? null
      : false;
  return guest;
}

function readMemory(guest: Guest, backing: Element, memory: Element, id: string): void {
  const kind = attribute(memory, 'model');
  if (kind !== 'nvdimm' && kind !== 'virtio-pmem') return;
  const source = child(memory, 'source');
  const target = child(memory, 'target');
  const access = attribute(memory, 'access') ?? attribute(backing.access, 'mode');
  guest.backends.push({
    id,
    path: text(source.path),
    size: bytesOf(target.size),
    shared: access === 'shared',
    discardData: attribute(memory, 'discard') === 'yes' || 'discard' in backing,
    // libvirt sets prealloc=on for every nvdimm.
    preallocated: kind === 'nvdimm' || attribute(backing.allocation, 'mode') === 'immediate',
    pmem: 'pmem' in source,
    readOnly: false,
    offset: 0,
  });
  const labels = 'label' in target ? bytesOf(child(target, 'label').size) : 0;
  guest.devices.push({ kind, backend: id, unarmed: 'readonly' in target, labelSize: labels });
  if (kind === 'nvdimm')
    guest.nvdimmMachine = true; // libvirt adds it
  else
    guest.unseen.push(
      "<memory model='virtio-pmem'>: some versions of libvirt (9.0 of Debian 12) do not start it, “pcow libvirt-xml” does",
    );
}

function child(element: Element, name: string): Element {
  const found = element[name];
  return typeof found === 'object' && found !== null ? (found as Element) : {};
}

function list(value: unknown): unknown[] {
  return value === undefined ? [] : Array.isArray(value) ? (value as unknown[]) : [value];
}

function attribute(element: unknown, name: string): string | undefined {
  const value =
    typeof element === 'object' && element !== null ? (element as Element)[`@${name}`] : undefined;
  return typeof value === 'string' ? value : undefined;
}

function text(element: unknown): string {
  if (typeof element === 'string') return element;
  const inner =
    typeof element === 'object' && element !== null ? (element as Element)['#text'] : undefined;
  return typeof inner === 'string' ? inner : '';
}

function bytesOf(element: unknown): number {
  return bytes(text(element), attribute(element, 'unit'));
}

/** Units of libvirt; a plain number is in KiB. */
function bytes(number: string, unit = 'KiB'): number {
  const [, prefix = '', binary] = /^([kmgtpe]?)(i?)b?(?:ytes)?$/i.exec(unit) ?? [];
  const power = prefix === '' ? 0 : 'kmgtpe'.indexOf(prefix.toLowerCase()) + 1;
  // "KB" is 1000 bytes, "K" and "KiB" are 1024.
  return Number(number) * (/^.b$/i.test(unit) && binary === '' ? 1000 : 1024) ** power;
}
