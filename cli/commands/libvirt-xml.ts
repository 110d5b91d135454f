import { existsSync } from 'node:fs';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { monitorLibrary } from '../../src/client/monitored-command.js';
import { backingsFor } from '../../src/guest/backings.js';
import { whileWaiting } from '../find-image.js';
import { Failure, warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { libvirtElements } from '../../src/guest/libvirt-elements.js';
import { say } from '../output/stdout.js';
import { DEVICES, warningsFor, type Device } from '../../src/guest/qemu-options.js';
import { parseMemory } from '../../src/images/sizes.js';
import { textOf } from '../input-text.js';

interface Options {
  device: Device;
  memory?: string;
  cpus?: number;
  into?: string;
  unarmed?: boolean;
  plain?: boolean;
}

const DEFAULT_MEMORY = '4G';

export function addLibvirtXml(program: Command): void {
  const command = program
    .command('libvirt-xml')
    .summary('print the libvirt elements that map images as memory')
    .description(
      'Prints the XML elements with which a libvirt domain has mounted images as persistent memory.',
    )
    .argument('<image...>', 'the mounted flat files, or the image files of a mounted directory')
    .addOption(
      new Option('--device <device>', 'what the guest sees')
        .choices(DEVICES)
        .default('virtio-pmem'),
    )
    .option('--memory <size>', 'ordinary memory of the guest; default: 4G')
    .option('--cpus <number>', 'virtual processors of the guest; default: 1', parseCpus)
    .option('--into <file>', 'print this whole domain with the images in it; “-” is standard input')
    .option('--unarmed', 'with nvdimm: tell the guest that its flushes are not durable')
    .option('--plain', 'without the monitor')
    .action(libvirtXml);
  addNotes(command, {
    text: [
      'Put the elements into <domain>, in place of those with the same name. Persistent memory of a guest ' +
        'needs a NUMA node, so its ordinary memory is written there. The machine must be a q35 with ACPI.',
      'QEMU gets the images as arguments, because libvirt’s own <memory> fills an nvdimm at the start, and ' +
        'some versions refuse a virtio-pmem. QEMU preloads the monitor. It runs as libvirt’s user, which ' +
        'needs access (mount with --allow-other, and set the mode of the image), and in libvirt’s ' +
        'confinement: see docs/monitor.md.',
      '“pcow doctor --libvirt FILE” checks a whole domain.',
    ],
    examples: [
      {
        command: 'pcow libvirt-xml /mnt/vm1 --memory 8G --cpus 4',
        does: 'an image, 8 GiB, 4 processors',
      },
      { command: 'virsh edit vm1', does: 'where the elements go' },
      {
        command: 'virsh dumpxml --inactive vm1 | pcow libvirt-xml /mnt/vm1 --into - > vm1.xml',
        does: 'the whole domain, for “virsh define vm1.xml”',
      },
    ],
  });
}

async function libvirtXml(given: string[], options: Options): Promise<void> {
  const { device, cpus = 1, unarmed = false, plain = false } = options;
  if (unarmed && device !== 'nvdimm') {
    throw new Failure('PCOW_USAGE', '--unarmed is only supported with --device nvdimm');
  }
  if (options.into !== undefined && (options.memory !== undefined || options.cpus !== undefined)) {
    throw new Failure(
      'PCOW_USAGE',
      'a domain defines its memory and processors itself: omit --memory and --cpus',
    );
  }
  const memory = parseMemory(options.memory ?? DEFAULT_MEMORY);
  const images = await backingsFor(given, whileWaiting);
  for (const warning of warningsFor({ images, device, unarmed })) {
    warn('pcow', warning);
  }
  const monitor = plain ? null : monitorLibrary();
  if (options.into === undefined) {
    say(
      libvirtElements({
        images,
        device,
        memory,
        cpus,
        unarmed,
        monitor,
        kvm: existsSync('/dev/kvm'),
      }),
    );
    return;
  }
  const { intoDomain } = await import('../into-domain.js');
  say(intoDomain(await textOf(options.into), options.into, { images, device, unarmed, monitor }));
}

function parseCpus(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text)) {
    throw new InvalidArgumentError('it must be a number from 1 to 9999.');
  }
  return Number(text);
}
