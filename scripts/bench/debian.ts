/** A boot of the Debian of scripts/bench/guest/debian, which reports and switches itself off. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';

import { accelerator } from '../guest/accelerator.js';
import { repository } from '../guest/files.js';
import type { Stand } from './stand.js';

/** Bytes of its root file system. */
export const DEBIAN_SIZE = 2 ** 31;

/** Seconds for one boot, after which something is wrong. */
const LIMIT = 900;

const file = (name: string): string => path.join(repository, 'build/guest/debian', name);

export const debianRoot = file('root.img');

export interface Boot {
  /** Seconds from the kernel's start to the first process of the root. */
  kernel: number;
  /** Seconds from there until multi-user.target. */
  userspace: number;
  /** The guest's clock source: times of two guests can be compared if it is the same. */
  clock: string;
  /** What the command that runs QEMU has written. */
  output: string;
}

export interface Disk {
  /** QEMU's options for it. */
  device: string[];
  medium: 'pmem' | 'block';
  /** The command that runs QEMU. */
  under: string[];
}

export async function bootDebian(stand: Stand, disk: Disk): Promise<Boot> {
  const report = stand.fresh('report');
  const root = disk.medium === 'block' ? 'root=/dev/vda' : 'root=/dev/pmem0 rootflags=dax=always';
  const output = await stand.command(
    ...['timeout', '-k', '5', String(LIMIT)],
    ...disk.under,
    ...['qemu-system-x86_64', '-accel', await accelerator(), '-cpu', 'max', '-m', '512M'],
    ...['-nodefaults', '-display', 'none', '-no-reboot', ...disk.device],
    ...['-serial', 'null', '-serial', `file:${report}`],
    ...['-kernel', file('vmlinuz'), '-initrd', file('initrd')],
    ...['-append', `${root} rootfstype=ext4 rw console=ttyS0 quiet tsc=reliable`],
  );
  const text = await readFile(report, 'utf8');
  const [, first, ready, clock = ''] = /^(\d+) (\d+) (\S+)\s*$/.exec(text) ?? [];
  if (first === undefined) throw new Error(`the guest has not reported: ${text}`);
  const kernel = Number(first) / 1e6;
  return { kernel, userspace: Number(ready) / 1e6 - kernel, clock, output };
}
