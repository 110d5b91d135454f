/** QEMU's command line for a machine of the lab, without its serial ports. */
import path from 'node:path';

import { accelerator } from '../guest/accelerator.js';
import { repository } from '../guest/files.js';

export const lab = path.join(repository, 'build/lab');

export const kvm = (await accelerator()) === 'kvm';

export interface MachineOptions {
  /** A directory of scripts/lab/kernel. */
  kernel: string;
  processors?: string | undefined;
  memory: string;
  /** The file with what the machine runs (scripts/lab/inside). */
  command: string;
  /** Parameters of its kernel. */
  parameters?: string;
  /** More of QEMU's options. */
  devices?: string[];
}

/**
 * An emulated processor that gets little time fails the kernel's check of its timer, and the
 * watchdogs.
 */
const PATIENCE = 'no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1';

export function machineCommand(options: MachineOptions): string[] {
  const { kernel, memory, command, parameters = '', devices = [] } = options;
  const processors = options.processors ?? (kvm ? '2' : '1');
  const disk = (name: string): string[] => [
    '-drive',
    `file=${path.join(lab, name)},if=virtio,format=raw,readonly=on`,
  ];
  return [
    ...['qemu-system-x86_64', '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-machine', 'q35', '-accel', kvm ? 'kvm' : 'tcg', '-cpu', 'max', '-m', memory],
    // Several emulated processors spend most of a busy host's time waiting for each other, so there
    // is one. Its clock goes by its instructions, 1 ns each: what waits for an answer waits as long
    // as on a real processor, however slow the host is.
    ...['-smp', processors, ...(kvm || processors !== '1' ? [] : ['-icount', 'shift=0'])],
    ...['-kernel', path.join(lab, kernel, 'vmlinuz')],
    ...['-initrd', path.join(lab, kernel, 'initramfs.gz')],
    ...['-append', `console=ttyS0 panic=-1 quiet ${parameters} ${PATIENCE}`],
    ...[...disk('root.img'), ...disk('project.img')],
    ...['-fw_cfg', `name=opt/pcow/command,file=${command}`],
    ...devices,
  ];
}
