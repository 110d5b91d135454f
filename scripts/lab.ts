/**
 * `npm run lab`: a machine with persistent memory, in which Pcow runs as on a host (docs/lab.md).
 *
 *   npm run lab -- SUITE                  the suites are those of scripts/lab/suites
 *   npm run lab -- shell COMMAND...       one command in the lab, as root
 *   npm run lab -- --kernel trixie ...    on this kernel of Debian; --processors N: by default 2 with KVM, 1 without
 *   npm run lab -- --minutes 300 ...      the suite is ended after as long as this, not after the usual time
 *
 * Prints what the suite prints, and ends with its exit code.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { repository } from './guest/files.js';
import { conduct, type Stage } from './lab/conduct.js';
import { machineCommand } from './lab/machine.js';
import { sharedDirectory } from './lab/shared-directory.js';

interface Suite {
  /** The native tests that it runs at length: see scripts/lab/project. */
  native?: string[];
  /**
   * The kernels that it runs on, one after another, if none is named; otherwise the one of the test
   * guests.
   */
  kernels?: string[];
  minutes: number;
  /** Several hosts that do this, after what the suite does on one machine if there is any. */
  hosts?: { count: number; play: (stage: Stage, words: string[]) => Promise<void>; alone?: true };
}

const plain = (...names: string[]): string[] => names.map((name) => `plain/${name}_test`);

const SUITES: Record<string, Suite> = {
  shell: { minutes: 60 },
  short: { minutes: 30 },
  dax: {
    native: plain('concurrency', 'crash', 'family', 'mapped_holes', 'merge', 'model', 'monitor'),
    minutes: 120,
  },
  filesystems: { minutes: 90, hosts: { count: 2, play: sharedDirectory } },
  kernels: {
    native: plain('monitor'),
    kernels: ['own', 'bookworm-backports', 'trixie'],
    minutes: 120,
  },
};

/**
 * Half a GiB of it at most is what the kernel, Debian and the layers of memory take; the persistent
 * memory lies above 4 GiB.
 */
const MEMORY = '4G';
const PERSISTENT = 'memmap=1G!4G';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    kernel: { type: 'string' },
    processors: { type: 'string' },
    minutes: { type: 'string' },
  },
});

const [name = '', ...words] = positionals;
const suite = SUITES[name];
if (!suite) {
  process.stderr.write(
    `usage: npm run lab -- [--kernel NAME] [--processors N] [--minutes N] SUITE; the suites are: ${Object.keys(SUITES).join(' ')}\n`,
  );
  process.exit(2);
}

const native = words[0] === 'at-length' ? (suite.native ?? []) : [];
must('bash', 'scripts/lab/project', ...native);
const kernels = values.kernel === undefined ? (suite.kernels ?? ['own']) : [values.kernel];
for (const kernel of kernels) {
  must('bash', 'scripts/lab/kernel', kernel);
  const minutes = Number(values.minutes ?? suite.minutes);
  const { hosts } = suite;
  const onHostsOnly = hosts?.alone === true || words[0] === 'hosts';
  if (!onHostsOnly) end(await run(kernel, command(), minutes));
  if (hosts && (onHostsOnly || words.length === 0))
    end(
      await conduct({ count: hosts.count, kernel, minutes }, (stage) => hosts.play(stage, words)),
    );
}

function end(code: number): void {
  if (code !== 0) process.exitCode = code;
}

/** What the first process of the lab's Debian runs. */
function command(): string {
  const what =
    name === 'shell' ? words.join(' ') : `bash scripts/lab/suites/${name} ${words.join(' ')}`;
  return `export PCOW_TEST_PROGRAMS=$PWD/build/lab/programs NATIVE='${native.join(' ')}'\n${what}\n`;
}

/** A step of the preparation. */
function must(program: string, ...args: string[]): void {
  const { status } = spawnSync(program, args, {
    cwd: repository,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (status !== 0) process.exit(status ?? 1);
}

/** Boots the lab for one command, and resolves with its exit code. */
async function run(kernel: string, command: string, minutes: number): Promise<number> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'pcow-lab-'));
  const file = (name: string): string => path.join(scratch, name);
  try {
    writeFileSync(file('command'), command);
    // It dies with this process. ttyS0 is the kernel's console; scripts/lab/inside has the others.
    const machine = machineCommand({
      kernel,
      processors: values.processors,
      memory: MEMORY,
      command: file('command'),
      parameters: PERSISTENT,
      devices: [
        ...['-serial', `file:${file('console')}`, '-serial', 'stdio'],
        ...['-serial', `file:${file('exit-code')}`],
      ],
    });
    const qemu = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...machine], {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    const stop = (): void => void qemu.kill('SIGKILL');
    const limit = setTimeout(stop, minutes * 60_000);
    process.on('SIGINT', stop).on('SIGTERM', stop);
    await once(qemu, 'close');
    process.off('SIGINT', stop).off('SIGTERM', stop);
    clearTimeout(limit);
    const code = /^(\d+)\s*$/.exec(readFileSync(file('exit-code'), 'utf8'))?.[1];
    if (code !== undefined) return Number(code);
    const said = readFileSync(file('console'), 'utf8').split('\n').slice(-60).join('\n');
    process.stderr.write(
      `not ok - lab ${name}: it ended before its command did, or took more than ${minutes} minutes\n${said}\n`,
    );
    return 1;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
