import { Option, type Command } from 'commander';
import { backingsFor } from '../../src/guest/backings.js';
import { whileWaiting } from '../find-image.js';
import { Failure, warn } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { DEVICES, qemuOptions, type Device } from '../../src/guest/qemu-options.js';
import { quote } from '../../src/engine/quote.js';
import { parseMemory } from '../../src/images/sizes.js';

interface Options {
  device: Device;
  memory: string;
  id?: string;
  unarmed?: boolean;
  json?: boolean;
}

export function addQemuArgs(program: Command): void {
  const command = program
    .command('qemu-args')
    .summary('print the options with which QEMU maps images')
    .description(
      'Prints the options with which QEMU maps mounted images as persistent memory of its guest.',
    )
    .argument('<image...>', 'the mounted flat files, or the image files of a mounted directory')
    .addOption(
      new Option('--device <device>', 'what the guest sees')
        .choices(DEVICES)
        .default('virtio-pmem'),
    )
    .option('--memory <size>', 'ordinary memory of the guest, as with QEMU’s -m', '4G')
    .option(
      '--id <id>',
      'a name for the memory in QEMU, numbered if there are several; default: pcow0, pcow1, …',
    )
    .option('--unarmed', 'with nvdimm: tell the guest that its flushes are not durable')
    .option('--json', 'a list of arguments, for programs')
    .action(qemuArgs);
  addNotes(command, {
    text: [
      'A guest’s flush on virtio-pmem is an fsync of the flat file, and so is durable. A guest flushes an ' +
        'nvdimm with processor instructions, which do not make a file durable that is not on persistent ' +
        'memory. --unarmed tells the guest so, and Linux then makes the device read-only.',
      'If the image file is in persistent memory (a filesystem with DAX; “pcow doctor DIR” shows that), an ' +
        'nvdimm gets pmem=on: QEMU asks for MAP_SYNC, which the monitor grants there. Under “pcow run”, what the ' +
        'guest flushes is then durable at once. Without the monitor, or elsewhere, QEMU warns and continues ' +
        'without.',
    ],
    examples: [
      {
        command: 'qemu-system-x86_64 $(pcow qemu-args /mnt/vm1) -nographic …',
        does: 'a guest with /dev/pmem0',
      },
      { command: 'pcow qemu-args /mnt/root /mnt/data', does: 'two: /dev/pmem0 and /dev/pmem1' },
      {
        command: 'pcow qemu-args /mnt/vm1 --device nvdimm --memory 8G',
        does: 'as an NVDIMM, beside 8 GiB',
      },
    ],
  });
}

async function qemuArgs(given: string[], options: Options): Promise<void> {
  const { device, unarmed = false } = options;
  if (unarmed && device !== 'nvdimm') {
    throw new Failure('PCOW_USAGE', '--unarmed is only supported with --device nvdimm');
  }
  const memory = parseMemory(options.memory);
  const images = await backingsFor(given, { id: options.id, ...whileWaiting });
  const { args, warnings } = qemuOptions({ images, device, memory, unarmed });
  for (const warning of warnings) {
    warn('pcow', warning);
  }
  if (options.json === true) {
    const [first] = images;
    sayJson({ args, file: first?.file, size: first?.size, images, device, warnings });
    return;
  }
  const unquotable = args.find((arg) => /[\s*?[\]\\"'$]/.test(arg));
  if (unquotable !== undefined) {
    warn('pcow', `${quote(unquotable)} cannot be passed through $(…) of a shell: use --json`);
  }
  for (let i = 0; i < args.length; i += 2) {
    say(args.slice(i, i + 2).join(' '));
  }
}
