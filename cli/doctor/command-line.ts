/**
 * Parses a QEMU command line into a Guest. Only options about memory are interpreted; everything
 * else is skipped.
 */
import { Failure } from '../output/errors.js';
import { GIB, MIB } from '../../src/images/sizes.js';
import { emptyGuest, type Guest, type Words } from './guest.js';

const WORDS: Words = {
  share: 'add share=on to its -object',
  discardData: 'remove discard-data=on from its -object',
  prealloc: 'remove prealloc=on and -mem-prealloc',
  pmem: 'remove pmem=on from its -object',
  readOnly: 'remove readonly=on from its -object',
  offset: 'remove offset=… from its -object',
  labels: 'remove label-size=… from its -device',
  cachesPersist: 'remove nvdimm-persistence=cpu from -machine',
  maxMemory: 'add maxmem=SIZE to -m, as “pcow qemu-args” does',
  slots: 'add slots=NUMBER to -m, as “pcow qemu-args” does',
  nvdimmMachine: 'add nvdimm=on to -machine',
  acpi: 'leave -no-acpi and acpi=off of -machine out',
  unarmed: 'use virtio-pmem-pci, or add unarmed=on to its -device',
  locked: 'remove mem-lock=on from -overcommit',
  physicalBits: (bits) => `-cpu max,phys-bits=${bits}`,
  size: (bytes) => `size=${bytes} in its -object`,
};

/** The backend for images. */
const FILE = 'memory-backend-file';

/** QEMU's options without a value; all others take the next word. */
const FLAGS =
  /^-(mem-prealloc|nographic|S|s|snapshot|no-.*|enable-kvm|daemonize|usb|nodefaults|full-screen|h|help|version|win2k-hack|singlestep|old-param|semihosting|preconfig|only-migratable|xen-.*|enable-sync-profile|alt-grab|ctrl-grab|portrait|curses)$/;

/** `words`: the program, then its options; `pcow run …` may precede them. */
export function guestOfCommandLine(words: string[]): Guest {
  const { rest, monitored } = withoutRun(words);
  const [emulator, ...options] = rest;
  if (emulator === undefined || emulator.startsWith('-')) {
    throw new Failure(
      'PCOW_USAGE',
      'a QEMU command line begins with the program',
      'pcow doctor -- qemu-system-x86_64 …',
    );
  }
  const guest = emptyGuest(emulator, WORDS);
  guest.monitored = monitored;
  readOptions(guest, options);
  return guest;
}

/** For arguments that are part of another description, too. */
export function readOptions(guest: Guest, options: string[]): void {
  let preallocated = false;
  for (let at = 0; at < options.length; at += 1) {
    const name = (options[at] ?? '').replace(/^--/, '-');
    if (name === '-mem-prealloc') preallocated = true;
    if (!name.startsWith('-') || FLAGS.test(name)) continue;
    at += 1;
    readOption(guest, name, options[at] ?? '');
  }
  if (preallocated) for (const backend of guest.backends) backend.preallocated = true;
  if (options.includes('-snapshot')) guest.throwAway = true;
  if (options.includes('-no-acpi')) guest.acpi = false;
  for (const { backend } of guest.devices) {
    const other = guest.objects.get(backend);
    if (other !== undefined && other !== FILE) guest.volatile.push(`${other} ${backend}`);
  }
}

function withoutRun(words: string[]): { rest: string[]; monitored: boolean | null } {
  const run = /(^|\/)pcow$/.test(words[0] ?? '') && words[1] === 'run';
  if (!run) return { rest: words, monitored: false };
  const end = words.indexOf('--');
  const rest = end > 0 ? words.slice(end + 1) : words.slice(2);
  return { rest, monitored: !(end > 0 ? words.slice(0, end) : words).includes('--plain') };
}

function readOption(guest: Guest, name: string, value: string): void {
  switch (name) {
    case '-m': {
      const { first, fields } = fieldsOf(value, 'size');
      guest.memory = sizeOf(fields.get('size') ?? first, MIB);
      guest.slots = Number(fields.get('slots') ?? guest.slots);
      guest.maxMemory = fields.has('maxmem') ? sizeOf(fields.get('maxmem'), MIB) : guest.maxMemory;
      return;
    }
    case '-machine':
    case '-M': {
      const { fields } = fieldsOf(value, 'type');
      if (isOn(fields.get('nvdimm'))) guest.nvdimmMachine = true;
      if (fields.has('acpi')) guest.acpi = /^(on|auto)$/.test(fields.get('acpi') ?? '');
      if (fields.get('nvdimm-persistence') === 'cpu') guest.cachesPersist = true;
      const backend = fields.get('memory-backend');
      if (backend !== undefined)
        guest.ordinary.push({ backend, by: `-machine memory-backend=${backend}` });
      return;
    }
    case '-numa': {
      const backend = fieldsOf(value, 'type').fields.get('memdev');
      if (backend !== undefined)
        guest.ordinary.push({ backend, by: `-numa node,memdev=${backend}` });
      return;
    }
    case '-cpu': {
      const { first, fields } = fieldsOf(value, 'model');
      const bits = fields.get('phys-bits');
      if (bits !== undefined) guest.physicalBits = Number(bits) === 0 ? 'host' : Number(bits);
      else if (first === 'host' || isOn(fields.get('host-phys-bits'))) guest.physicalBits = 'host';
      return;
    }
    case '-object':
      readObject(guest, fieldsOf(value, 'qom-type'));
      return;
    case '-device':
      readDevice(guest, fieldsOf(value, 'driver'));
      return;
    case '-overcommit':
    case '-realtime': {
      const { fields } = fieldsOf(value, '');
      if (isOn(fields.get('mem-lock')) || isOn(fields.get('mlock'))) guest.locked = true;
      return;
    }
    case '-netdev':
    case '-chardev':
      if (fieldsOf(value, 'type').first === 'vhost-user') guest.vhostUser.push(`${name} ${value}`);
      return;
    case '-mem-path':
      guest.unseen.push(`-mem-path ${value}: the ordinary memory of the guest`);
      return;
    case '-readconfig':
      guest.unseen.push(`-readconfig ${value}`);
      return;
    default:
  }
}

interface Fields {
  /** The value without a name. */
  first: string;
  fields: Map<string, string>;
}

/** "a,b=c,d=e,,f", or the same as JSON, where `firstName` is the name of "a". */
function fieldsOf(value: string, firstName: string): Fields {
  if (value.trimStart().startsWith('{')) {
    try {
      const entries = Object.entries(JSON.parse(value) as Record<string, unknown>);
      const fields = new Map(
        entries.map(([key, it]) => [key, typeof it === 'string' ? it : JSON.stringify(it)]),
      );
      return { first: fields.get(firstName) ?? '', fields };
    } catch {
      throw new Failure('PCOW_INVALID', `this option looks like JSON, but is not valid: ${value}`);
    }
  }
  // A comma ends a field; two commas in a value stand for one.
  const parts = value.split(/(?<!,)(?:,,)*,(?!,)/);
  const fields = new Map<string, string>();
  let first = '';
  for (const [at, part] of parts.entries()) {
    const equals = part.indexOf('=');
    const text = (it: string) => it.replaceAll(',,', ',');
    if (equals >= 0)
      fields.set(part.slice(0, equals).replace(/_/g, '-'), text(part.slice(equals + 1)));
    else if (at === 0) first = text(part);
    else fields.set(part, 'on');
  }
  return { first: first === '' ? (fields.get(firstName) ?? '') : first, fields };
}

function readObject(guest: Guest, { first, fields }: Fields): void {
  if (first.startsWith('memory-backend-')) guest.objects.set(fields.get('id') ?? '', first);
  if (first !== FILE) return;
  guest.backends.push({
    id: fields.get('id') ?? '',
    path: fields.get('mem-path') ?? '',
    size: fields.has('size') ? sizeOf(fields.get('size'), 1) : null,
    shared: isOn(fields.get('share')),
    discardData: isOn(fields.get('discard-data')),
    preallocated: isOn(fields.get('prealloc')),
    pmem: isOn(fields.get('pmem')),
    readOnly: isOn(fields.get('readonly')),
    offset: sizeOf(fields.get('offset'), 1) ?? 0,
  });
}

function readDevice(guest: Guest, { first, fields }: Fields): void {
  const name = `${first}${fields.has('id') ? ` ${fields.get('id')}` : ''}`;
  if (/^(virtio-pmem-pci|virtio-pmem|nvdimm)$/.test(first)) {
    guest.devices.push({
      kind: first === 'nvdimm' ? 'nvdimm' : 'virtio-pmem',
      backend: fields.get('memdev') ?? '',
      unarmed: isOn(fields.get('unarmed')),
      labelSize: sizeOf(fields.get('label-size'), 1) ?? 0,
    });
  } else if (/^(pc-dimm|virtio-mem(-pci)?)$/.test(first)) {
    const backend = fields.get('memdev') ?? '';
    guest.ordinary.push({ backend, by: `-device ${first},memdev=${backend}` });
  } else if (first.startsWith('vhost-user-')) {
    guest.vhostUser.push(name);
  } else if (first.startsWith('vfio-')) {
    guest.vfio.push(name);
  }
}

function isOn(value: string | undefined): boolean {
  return /^(on|yes|true|y)$/.test(value ?? '');
}

/** Sizes as QEMU reads them: `unit` is the unit of a plain number. */
function sizeOf(text: string | undefined, unit: number): number | null {
  const [, digits, suffix] = /^(\d+(?:\.\d+)?)([bkmgtpe]?)$/i.exec(text ?? '') ?? [];
  if (digits === undefined) return null;
  const units: Record<string, number> = {
    b: 1,
    k: 1024,
    m: MIB,
    g: GIB,
    t: 1024 * GIB,
    p: 1024 ** 2 * GIB,
    e: 1024 ** 3 * GIB,
  };
  return (
    Number(digits) *
    (suffix === '' || suffix === undefined ? unit : (units[suffix.toLowerCase()] ?? unit))
  );
}
