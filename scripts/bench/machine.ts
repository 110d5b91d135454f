/** What the figures were measured on. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import os from 'node:os';

export interface Machine {
  processor: string;
  processors: number;
  /** MiB. */
  memory: number;
  kernel: string;
  /** Of the directory where images lie. */
  filesystem: string;
  hypervisor: string;
  qemu: string;
  node: string;
  /** Of the tree that was measured. */
  commit: string;
  /** The load average of a minute when the comparison began: others at work. */
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
    commit: output('git', '-C', repository, 'rev-parse', '--short', 'HEAD') + (isChanged(repository) ? '-dirty' : ''),
    load: Math.round((os.loadavg()[0] ?? 0) * 100) / 100,
  };
}

/** Whether there are changes beside the figures themselves, which the comparisons before have written. */
function isChanged(repository: string): boolean {
  const figures = [':!docs/benchmarks', ':!docs/benchmarks.md'];
  return output('git', '-C', repository, 'status', '--porcelain', '--', '.', ...figures) !== '';
}

function output(command: string, ...words: string[]): string {
  try {
    return execFileSync(command, words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return 'unknown';
  }
}
