/** The machine on which the results were measured. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import os from 'node:os';

export interface Machine {
  processor: string;
  processors: number;
  /** MiB. */
  memory: number;
  kernel: string;
  /** Of the directory with the images. */
  filesystem: string;
  hypervisor: string;
  qemu: string;
  node: string;
  /** Of the measured tree. */
  commit: string;
  /** The load average of one minute when the comparison began: other programs at work. */
  load: number;
}

export function describeMachine(directory: string, repository: string): Machine {
  const cpuinfo = readFileSync('/proc/cpuinfo', 'utf8');
  return {
    processor: /^model name\s*: (.*)$/m.exec(cpuinfo)?.[1] ?? 'unknown',
    processors: os.availableParallelism(),
    memory: Math.round(os.totalmem() / 2 ** 20),
    kernel: os.release(),
    filesystem: output('stat', '-f', '-c', '%T', directory),
    hypervisor: /^flags.*\bhypervisor\b/m.test(cpuinfo) ? 'yes' : 'no',
    qemu: output('qemu-system-x86_64', '--version').split('\n')[0] ?? '',
    node: process.version,
    commit:
      output('git', '-C', repository, 'rev-parse', '--short', 'HEAD') +
      (isChanged(repository) ? '-dirty' : ''),
    load: Math.round((os.loadavg()[0] ?? 0) * 100) / 100,
  };
}

/** Whether there are changes other than the results that earlier comparisons have written. */
function isChanged(repository: string): boolean {
  const figures = [':!docs/benchmarks', ':!docs/benchmarks.md'];
  return output('git', '-C', repository, 'status', '--porcelain', '--', '.', ...figures) !== '';
}

function output(command: string, ...words: string[]): string {
  try {
    return execFileSync(command, words, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return 'unknown';
  }
}
