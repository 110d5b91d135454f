import type { Command } from 'commander';
import { guestOfCommandLine } from '../doctor/command-line.js';
import { directoryFindings } from '../doctor/directory.js';
import type { Finding, Level } from '../doctor/finding.js';
import { guestFindings } from '../doctor/guest-findings.js';
import type { Guest } from '../doctor/guest.js';
import { libvirtFindings, libvirtHost } from '../doctor/libvirt-host.js';
import { machineFindings } from '../doctor/machine.js';
import { out } from '../output/colors.js';
import { UNFIT } from '../output/exit-codes.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';
import { quote } from '../../src/engine/quote.js';
import { textOf } from '../input-text.js';

interface Options {
  libvirt?: string;
  json?: boolean;
}

const DEFAULT_QEMU = 'qemu-system-x86_64';

export function addDoctor(program: Command): void {
  const command = program
    .command('doctor')
    .summary('report what this machine, or a guest, lacks')
    .description(
      'Checks this machine, an image directory, and a command line of QEMU or a libvirt domain. Reports ' +
        'what will not work, and how to fix it.',
    )
    .argument(
      '[words...]',
      'the image directory (or its mount), then -- and a command line of QEMU',
    )
    .option('--libvirt <file>', 'the XML of a domain; “-” is standard input')
    .option('--json', 'for programs')
    .usage('[options] [DIR] [-- COMMAND [ARGUMENT...]]')
    .action(doctor);
  addNotes(command, {
    text: [
      'In the directory it makes an image, uses it and removes it again. It changes nothing else, and ' +
        'starts no guest.',
      `The exit code is ${UNFIT} if something will not work, otherwise 0. Warnings do not count.`,
      'A finding in JSON has “subject” (machine, directory, guest or libvirt), “check”, “level” (ok, warning or problem), “message” and “mend”.',
    ],
    examples: [
      { command: 'pcow doctor', does: 'checks this machine' },
      {
        command: 'pcow doctor /srv/images',
        does: 'also checks whether the directory can hold images',
      },
      {
        command: 'pcow doctor -- qemu-system-x86_64 -m 4G …',
        does: 'also checks whether a guest will work',
      },
      {
        command: 'virsh dumpxml vm1 | pcow doctor --libvirt -',
        does: 'the same for a libvirt domain',
      },
    ],
  });
}

async function doctor(words: string[], options: Options, command: Command): Promise<void> {
  const { directory, commandLine } = partsOf(words, command);
  if (options.libvirt !== undefined && commandLine.length > 0) {
    throw new Failure(
      'PCOW_USAGE',
      'describe the guest by a command line or by --libvirt, not by both',
    );
  }
  const guest = await guestOf(commandLine, options.libvirt);
  const about: [subject: string, findings: Finding[]][] = [
    ['machine', await machineFindings(guest?.emulator ?? DEFAULT_QEMU)],
    ...(directory === undefined
      ? []
      : ([['directory', await directoryFindings(directory)]] as [string, Finding[]][])),
    ...(guest === null ? [] : ([['guest', await guestFindings(guest)]] as [string, Finding[]][])),
    ...(guest === null || options.libvirt === undefined ? [] : [await aboutLibvirt(guest)]),
  ];
  const findings = about.flatMap(([subject, list]) =>
    list.map((finding) => ({ subject, ...finding })),
  );
  if (options.json === true) sayJson({ findings });
  else for (const [subject, list] of about) say(`${subject}\n${list.map(lines).join('\n')}`);
  if (findings.some(({ level }) => level === 'problem')) process.exitCode = UNFIT;
}

/** What on this host prevents libvirt's user from running this guest. */
async function aboutLibvirt({ backends, monitored }: Guest): Promise<[string, Finding[]]> {
  const files = backends.map((backend) => backend.path).filter((file) => file !== '');
  return ['libvirt', await libvirtFindings(await libvirtHost(), files, monitored !== false)];
}

/** commander removes the “--”. The command's own count of arguments shows what was before it. */
function partsOf(
  words: string[],
  command: Command,
): { directory: string | undefined; commandLine: string[] } {
  const raw = rawWords(command);
  const end = raw.indexOf('--');
  const before = end < 0 ? words : words.slice(0, words.length - (raw.length - end - 1));
  if (before.length > 1) {
    throw new Failure(
      'PCOW_USAGE',
      `unexpected argument ${quote(before[1] ?? '')}`,
      'put the command line of QEMU after “--”',
    );
  }
  return { directory: before[0], commandLine: words.slice(before.length) };
}

function rawWords(command: Command): string[] {
  return (command.parent as (Command & { rawArgs: string[] }) | null)?.rawArgs ?? [];
}

async function guestOf(commandLine: string[], libvirt: string | undefined): Promise<Guest | null> {
  if (libvirt !== undefined) {
    const { guestOfDomain } = await import('../doctor/libvirt-domain.js');
    return guestOfDomain(await textOf(libvirt), libvirt);
  }
  return commandLine.length === 0 ? null : guestOfCommandLine(commandLine);
}

const SIGNS: Record<Level, string> = {
  ok: out.green('  ok     '),
  warning: out.yellow('  warning'),
  problem: out.red('  problem'),
};

function lines({ level, message, mend }: Finding): string {
  const first = `${SIGNS[level]}  ${message}`;
  return mend === null ? first : `${first}\n             ${out.dim(mend)}`;
}
