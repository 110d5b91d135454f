import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { guestFiles } from './files.js';

const MIB = 1024 * 1024;

export type Accelerator = 'kvm' | 'tcg';

export interface GuestOptions {
  /** More QEMU options for devices: see pmemArgs(), and `pcow qemu-args`. */
  qemuArgs?: string[];
  /** How many /dev/pmemN the guest must find before it is ready. */
  pmemDevices?: number;
  /** A command with options that starts QEMU, such as ['pcow', 'run', '--']. */
  commandPrefix?: string[];
  accelerator: Accelerator;
  /** More parameters of the guest's kernel. */
  parameters?: string[];
  /** Milliseconds until the guest must be ready. */
  timeLimit?: number;
}

export interface RunOptions {
  /** Called with each piece of output as it arrives. */
  onOutput?: (text: string) => void;
  /** Milliseconds until the script must have ended. */
  timeLimit?: number;
}

export interface RunResult {
  output: string;
  exitCode: number;
}

/** A persistent memory device on a file; `size` is in bytes. */
export interface PmemDisk {
  file: string;
  size: number;
  device?: 'virtio-pmem' | 'nvdimm' | undefined;
}

/** QEMU's options for these disks. The guest has 512 MiB of other memory. */
export function disksArgs(disks: PmemDisk[]): string[] {
  const sizes = disks.reduce((sum, { size }) => sum + Math.ceil(size / MIB), 0);
  return [
    ...['-machine', 'q35,nvdimm=on'],
    ...['-m', `512M,slots=${disks.length + 1},maxmem=${1024 + sizes}M`],
    ...disks.flatMap(({ file, size, device }, number) => [
      ...['-object', `memory-backend-file,id=pmem${number},share=on,mem-path=${file},size=${size}`],
      ...['-device', `${device === 'nvdimm' ? 'nvdimm' : 'virtio-pmem-pci'},memdev=pmem${number}`],
    ]),
  ];
}

/** The same for one disk. */
export function pmemArgs(
  file: string,
  size: number,
  device: PmemDisk['device'] = 'virtio-pmem',
): string[] {
  return disksArgs([{ file, size, device }]);
}

/**
 * The command that boots a guest, without its two serial ports: ttyS0, the console, and ttyS1, the
 * commands. `init`: a program of scripts/guest with its arguments, which runs alone in the guest
 * instead of the init with which Guest talks.
 */
export function qemuCommand(options: GuestOptions, init?: [string, ...string[]]): string[] {
  const { vmlinuz, initramfs } = guestFiles();
  const start = init ? ` rdinit=/bin/${init[0]} -- ${init.slice(1).join(' ')}` : '';
  const parameters = (options.parameters ?? []).map((each) => ` ${each}`).join('');
  const append = `console=ttyS0 panic=-1 quiet pcow.pmem=${options.pmemDevices ?? 0}${parameters}${start}`;
  return [
    ...(options.commandPrefix ?? []),
    'qemu-system-x86_64',
    ...['-machine', `q35,accel=${options.accelerator}`, '-cpu', 'max', '-m', '512M'],
    ...(options.qemuArgs ?? []),
    ...['-kernel', vmlinuz, '-initrd', initramfs, '-append', append],
    ...['-nodefaults', '-display', 'none', '-no-reboot'],
  ];
}

interface Pending {
  id: number;
  onOutput: (text: string) => void;
  resolve: (result: RunResult) => void;
  reject: (error: Error) => void;
}

/**
 * A running guest. The caller must call kill() at the end; the kernel also does this when this
 * process dies.
 */
export class Guest {
  readonly exited: Promise<void>;
  #process: ChildProcess;
  #scratch: string;
  #received = '';
  #pending: Pending | undefined;
  #nextId = 1;

  /** Resolves when the guest is ready for run(). */
  static async start(options: GuestOptions): Promise<Guest> {
    return Guest.boot(qemuCommand(options), options.timeLimit ?? 90_000);
  }

  /** The same for another command, whose machine answers as scripts/guest/init does. */
  static async boot(command: string[], limit: number): Promise<Guest> {
    const guest = new Guest(command);
    try {
      await guest.#answer(0, undefined, limit, 'the guest was not ready');
      return guest;
    } catch (error) {
      await guest.kill();
      throw error;
    }
  }

  private constructor(command: string[]) {
    this.#scratch = mkdtempSync(join(tmpdir(), 'pcow-guest-'));
    // setpriv: a QEMU whose test was killed dies with it. In its own process group, so that kill()
    // reaches the processes that a prefix started.
    const args = [
      ...['--pdeathsig', 'KILL', '--'],
      ...command,
      ...['-serial', `file:${join(this.#scratch, 'console')}`],
      ...['-chardev', 'stdio,id=commands,signal=off', '-serial', 'chardev:commands'],
    ];
    this.#process = spawn('setpriv', args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    let complaints = '';
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => (complaints += text));
    this.#process.stdout?.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
    this.#process.stdin?.on('error', () => undefined); // QEMU is gone: `exited` tells
    this.exited = once(this.#process, 'close').then(() => {
      this.#pending?.reject(new Error(`QEMU ended\n${complaints}${this.console()}`));
      this.#pending = undefined;
      rmSync(this.#scratch, { recursive: true, force: true });
    });
  }

  get pid(): number {
    if (this.#process.pid === undefined) throw new Error('QEMU was not started');
    return this.#process.pid;
  }

  /** The output of the guest's kernel; empty once the guest has ended. */
  console(): string {
    try {
      return readFileSync(join(this.#scratch, 'console'), 'utf8');
    } catch {
      return '';
    }
  }

  /** Runs a shell script in the guest. One at a time. */
  async run(script: string, options: RunOptions = {}): Promise<RunResult> {
    const id = this.#nextId++;
    const answer = this.#answer(
      id,
      options.onOutput,
      options.timeLimit ?? 120_000,
      `no answer to: ${script}`,
    );
    const bytes = Buffer.from(script);
    this.#process.stdin?.write(`${id} ${bytes.length}\n`);
    this.#process.stdin?.write(bytes);
    return answer;
  }

  /** Like run(), for a script that must succeed. Resolves with its output. */
  async must(script: string, options: RunOptions = {}): Promise<string> {
    const { output, exitCode } = await this.run(script, options);
    if (exitCode !== 0)
      throw new Error(
        `exit code ${exitCode} in the guest from: ${script}\n${output}\n${this.console()}`,
      );
    return output;
  }

  /** Unmounts, flushes and switches off. */
  async powerOff(): Promise<void> {
    // The end of QEMU answers this request.
    this.run('cd /; umount -a -r 2> /dev/null; sync; poweroff -f').catch(() => undefined);
    await this.exited;
  }

  /**
   * SIGKILL, as a host without free memory would send it. Resolves when the process is gone. May be
   * called any number of times.
   */
  async kill(): Promise<void> {
    const { pid, exitCode, signalCode } = this.#process;
    if (pid !== undefined && exitCode === null && signalCode === null)
      process.kill(-pid, 'SIGKILL');
    await this.exited;
  }

  async #answer(
    id: number,
    onOutput: ((text: string) => void) | undefined,
    limit: number,
    complaint: string,
  ): Promise<RunResult> {
    if (this.#pending) throw new Error('the guest is still busy with another script');
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<RunResult>((resolve, reject) => {
        this.#pending = { id, onOutput: onOutput ?? (() => undefined), resolve, reject };
        timer = setTimeout(
          () =>
            reject(
              new Error(`${complaint} (after ${limit} ms)\n${this.#received}\n${this.console()}`),
            ),
          limit,
        );
      });
    } finally {
      clearTimeout(timer);
      this.#pending = undefined;
    }
  }

  #receive(text: string): void {
    this.#received += text;
    const pending = this.#pending;
    if (!pending) return;
    const end = new RegExp(`\\x1e${pending.id} (\\d+)\\n`).exec(this.#received);
    pending.onOutput(text);
    if (!end) return;
    const output = this.#received.slice(0, end.index);
    this.#received = '';
    this.#pending = undefined;
    pending.resolve({ output, exitCode: Number(end[1]) });
  }
}
