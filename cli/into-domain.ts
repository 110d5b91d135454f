/**
 * Adds images as memory to a libvirt domain, as `virsh dumpxml` prints it. Everything else stays as
 * it is.
 */
import { XMLBuilder, XMLParser } from 'fast-xml-parser';
import { guestOfDomain } from './doctor/libvirt-domain.js';
import { Failure } from './output/errors.js';
import { allOf, argumentsOf, escaped, type LibvirtRequest } from '../src/guest/libvirt-elements.js';
import { maxMemoryOf } from '../src/guest/qemu-options.js';

const KIB = 1024;
const QEMU_NAMESPACE = 'http://libvirt.org/schemas/domain/qemu/1.0';

/**
 * A node from the parser in order-preserving mode: the tag's name with its children, and the
 * attributes under “:@”.
 */
type Node = Record<string, unknown>;
type Attributes = Record<string, string>;

const SYNTAX = {
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: '',
  commentPropName: '#comment',
  suppressBooleanAttributes: false,
  // Entities stay entities.
  processEntities: false,
} as const;

/** `file` is its name in messages. */
export function intoDomain(
  xml: string,
  file: string,
  request: Pick<LibvirtRequest, 'images' | 'device' | 'unarmed' | 'monitor'>,
): string {
  const guest = guestOfDomain(xml, file); // rejects what is not a domain
  const tree = new XMLParser({ ...SYNTAX, parseTagValue: false, trimValues: true }).parse(
    xml,
  ) as Node[];
  const domain = tree.find((node) => 'domain' in node);
  if (domain === undefined || guest.memory === null)
    throw new Failure('PCOW_INVALID', `${file} has no memory element`);
  const elements = childrenOf(domain);
  checkMachine(elements, file);
  if (!guest.acpi) throw withoutAcpi(file);

  const memory = guest.memory;
  const others = withoutOwn(elements);
  const room = Math.max(memory, others.foreignMaxMemory ? (guest.maxMemory ?? 0) : 0);
  const slots = (others.foreignMaxMemory ? guest.slots : 0) + request.images.length;
  replace(
    elements,
    'maxMemory',
    [text(String(maxMemoryOf({ images: request.images, memory: room }) / KIB))],
    {
      slots: String(slots),
      unit: 'KiB',
    },
  );
  addNumaCell(elements, { kvm: attributesOf(domain).type === 'kvm', memory });
  addCommandLine(domain, elements, [
    ...argumentsOf(request, takenSlots(elements)).map((value): [string, Attributes] => [
      'arg',
      { value: escaped(value) },
    ]),
    ...(request.monitor === null
      ? []
      : [['env', { name: 'LD_PRELOAD', value: escaped(request.monitor) }] as [string, Attributes]]),
  ]);
  const builder = new XMLBuilder({
    ...SYNTAX,
    format: true,
    indentBy: '  ',
    suppressEmptyNode: true,
  });
  return builder.build(tree).trim();
}

function childrenOf(node: Node): Node[] {
  const name = nameOf(node);
  const found = node[name];
  return Array.isArray(found) ? (found as Node[]) : [];
}

function nameOf(node: Node): string {
  return Object.keys(node).find((key) => key !== ':@') ?? '';
}

function attributesOf(node: Node): Attributes {
  return (node[':@'] ?? {}) as Attributes;
}

function text(value: string): Node {
  return { '#text': value };
}

function element(name: string, attributes: Attributes, children: Node[] = []): Node {
  return { [name]: children, ':@': attributes };
}

function find(elements: Node[], name: string): Node | undefined {
  return elements.find((node) => nameOf(node) === name);
}

/** In its place, or at the end. */
function replace(elements: Node[], name: string, children: Node[], attributes: Attributes): void {
  const at = elements.findIndex((node) => nameOf(node) === name);
  if (at < 0) elements.push(element(name, attributes, children));
  else elements[at] = element(name, attributes, children);
}

function checkMachine(elements: Node[], file: string): void {
  const type = find(childrenOf(find(elements, 'os') ?? {}), 'type');
  const machine = type === undefined ? '' : (attributesOf(type).machine ?? '');
  if (!machine.includes('q35')) {
    throw new Failure(
      'PCOW_UNSUPPORTED',
      `the machine of ${file} is ${machine === '' ? 'not specified' : machine}, and images as memory need a q35`,
      "<type arch='x86_64' machine='q35'>hvm</type> in <os>",
    );
  }
}

function withoutAcpi(file: string): Failure {
  return new Failure(
    'PCOW_UNSUPPORTED',
    `the machine of ${file} has no ACPI: QEMU refuses an NVDIMM, and a guest’s flushes to virtio-pmem do not return`,
    '<features><acpi/></features> in <domain>',
  );
}

/**
 * Removes what an earlier call added. `foreignMaxMemory`: the domain has a maxMemory element that
 * Pcow did not add.
 */
function withoutOwn(elements: Node[]): { foreignMaxMemory: boolean } {
  const commandLine = elements.find((node) => /^(\w+:)?commandline$/.test(nameOf(node)));
  const words = commandLine === undefined ? [] : childrenOf(commandLine);
  const value = (node: Node | undefined) =>
    node === undefined ? '' : (attributesOf(node).value ?? '');
  const own = new Set<Node>();
  for (const [at, node] of words.entries()) {
    const next = words[at + 1];
    const pair =
      /^-(object|device)$/.test(value(node)) && /(id|memdev)=pcow\d+(,|$)/.test(value(next));
    const nvdimm = value(node) === '-machine' && value(next) === 'nvdimm=on';
    if ((pair || nvdimm) && next !== undefined) {
      own.add(node);
      own.add(next);
    }
    if (attributesOf(node).name === 'LD_PRELOAD' && value(node).includes('libpcow-monitor'))
      own.add(node);
  }
  if (commandLine !== undefined)
    commandLine[nameOf(commandLine)] = words.filter((node) => !own.has(node));
  return { foreignMaxMemory: own.size === 0 };
}

/** Persistent memory needs a NUMA node. An existing one stays. */
function addNumaCell(elements: Node[], { kvm, memory }: { kvm: boolean; memory: number }): void {
  const cpus = Number(childrenOf(find(elements, 'vcpu') ?? {})[0]?.['#text'] ?? 1);
  const cell = element('cell', {
    id: '0',
    cpus: allOf(cpus),
    memory: String(memory / KIB),
    unit: 'KiB',
  });
  const numa = element('numa', {}, [cell]);
  const cpu = find(elements, 'cpu');
  // Without KVM the host's processor cannot be passed through.
  if (cpu === undefined)
    elements.push(element('cpu', kvm ? { mode: 'host-passthrough' } : {}, [numa]));
  else if (find(childrenOf(cpu), 'numa') === undefined) childrenOf(cpu).push(numa);
}

/** The occupied slots on the first bus. */
function takenSlots(elements: Node[]): Set<number> {
  const taken = new Set<number>();
  for (const device of childrenOf(find(elements, 'devices') ?? {})) {
    const address = find(childrenOf(device), 'address');
    const { type, bus, slot } = address === undefined ? ({} as Attributes) : attributesOf(address);
    if (type === 'pci' && Number(bus) === 0) taken.add(Number(slot));
  }
  return taken;
}

function addCommandLine(domain: Node, elements: Node[], words: [string, Attributes][]): void {
  const there = elements.find((node) => /^(\w+:)?commandline$/.test(nameOf(node)));
  const prefix = there === undefined ? 'qemu:' : nameOf(there).replace('commandline', '');
  const added = words.map(([name, attributes]) => element(prefix + name, attributes));
  if (there === undefined) {
    domain[':@'] = { ...attributesOf(domain), 'xmlns:qemu': QEMU_NAMESPACE };
    elements.push(element('qemu:commandline', {}, added));
  } else {
    childrenOf(there).push(...added);
  }
}
