/**
 * No command waits for ever for a mount that has died, is stopped or hangs: the message names the
 * mount and the fix.
 */
import type { Command } from 'commander';
import { mustAnswerOnTheWay } from '../src/images/mount-answers.js';
import type { PcowMount } from '../src/images/mount-table.js';
import { warn } from './output/errors.js';

/**
 * Commands that ask no mount before they know which one, or that report a mount's trouble
 * themselves.
 */
const ASK_THEMSELVES = ['run', 'umount', 'doctor', 'completion', 'exit-codes'];

/**
 * Before a command does anything: every mount into which a word of its command line leads must
 * answer.
 */
export async function askMountsOf(command: Command): Promise<void> {
  if (ASK_THEMSELVES.includes(command.name())) return;
  const values = Object.values(command.opts<Record<string, unknown>>());
  // “mount DIR MOUNTPOINT” removes a dead mount.
  const words = command.name().startsWith('mount')
    ? command.args.slice(0, 1)
    : [...command.args, ...values];
  for (const word of words)
    if (typeof word === 'string') await mustAnswerOnTheWay(word, { onWait: sayThatItWaits });
}

/** Printed once, if a mount takes long to answer. */
export function sayThatItWaits({ mountpoint }: PcowMount): void {
  warn('pcow', `waiting for the mount on ${mountpoint}, which does not answer`);
}
