import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { repository } from './files.js';
import { Guest, type Accelerator } from './guest.js';

const TRIAL_MS = 15_000;
let known: Promise<Accelerator> | undefined;

/**
 * KVM if it boots the test guest, otherwise software emulation. On some machines /dev/kvm exists
 * but an ordinary kernel hangs with it, so it is tried, once for each boot of the host.
 */
export function accelerator(): Promise<Accelerator> {
  known ??= find();
  return known;
}

async function find(): Promise<Accelerator> {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return 'tcg';
  }
  const cache = join(repository, 'build/guest/accelerator');
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const cached = /^(\S+) (kvm|tcg)\n$/.exec(readOrEmpty(cache));
  if (cached?.[1] === boot) return cached[2] as Accelerator;
  const found = await tryKvm();
  writeFileSync(cache, `${boot} ${found}\n`);
  return found;
}

async function tryKvm(): Promise<Accelerator> {
  try {
    const guest = await Guest.start({ accelerator: 'kvm', timeLimit: TRIAL_MS });
    await guest.kill();
    return 'kvm';
  } catch {
    return 'tcg';
  }
}

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
