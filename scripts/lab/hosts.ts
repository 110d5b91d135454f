/**
 * Several machines of the lab as hosts, with a network between them. Each has a name, and a disk on
 * /srv that outlives the machine; everything else is as it was when it boots again.
 */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { Guest } from '../guest/guest.js';
import { machineCommand } from './machine.js';
import { Switch } from './switch.js';

const NAMES = ['one', 'two', 'three'];

/** Without KVM, beside other work, an answer may take minutes. */
const PATIENCE = { timeLimit: 30 * 60_000 };

export class Host {
  #machine: Guest | undefined;

  constructor(
    readonly name: string,
    private readonly command: string[],
  ) {}

  async boot(): Promise<void> {
    this.#machine = await Guest.boot(this.command, PATIENCE.timeLimit);
  }

  /** Runs a script of bash, as root, in the directory of the project; it must succeed. */
  async sh(script: string): Promise<string> {
    const { output, exitCode } = await this.try(script);
    if (exitCode !== 0)
      throw new Error(`host ${this.name}: exit code ${exitCode} from:\n${script}\n${output}`);
    return output.trimEnd();
  }

  async try(script: string): Promise<{ output: string; exitCode: number }> {
    if (!this.#machine) throw new Error(`host ${this.name} is off`);
    return this.#machine.run(`. scripts/lab/steps\n${script}\n`, PATIENCE);
  }

  /** As if its power failed. */
  async kill(): Promise<void> {
    await this.#machine?.kill();
    this.#machine = undefined;
  }
}

export class Hosts {
  readonly #network = new Switch();
  readonly all: Host[] = [];

  private constructor(private readonly directory: string) {}

  static async start(count: number, kernel: string): Promise<Hosts> {
    const hosts = new Hosts(mkdtempSync(path.join(tmpdir(), 'pcow-hosts-')));
    try {
      for (const name of NAMES.slice(0, count)) await hosts.#make(name, kernel);
      await Promise.all(hosts.all.map((host) => host.boot()));
    } catch (error) {
      await hosts.close();
      throw error;
    }
    return hosts;
  }

  async close(): Promise<void> {
    await Promise.all(this.all.map((host) => host.kill()));
    this.#network.close();
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** Cuts or joins the link of a host. */
  link(host: Host, joined: boolean): void {
    const number = this.all.indexOf(host) + 1;
    if (joined) this.#network.join(number);
    else this.#network.cut(number);
  }

  async #make(name: string, kernel: string): Promise<void> {
    const number = this.all.length + 1;
    const file = (kind: string): string => path.join(this.directory, `${name}.${kind}`);
    writeFileSync(file('command'), `bash scripts/lab/host ${name} ${number}\n`);
    writeFileSync(file('disk'), '');
    truncateSync(file('disk'), 2 ** 31);
    await this.#network.listen(number, file('net'));
    const devices = [
      ...['-drive', `file=${file('disk')},if=virtio,format=raw`],
      ...['-netdev', `stream,id=net,server=off,addr.type=unix,addr.path=${file('net')}`],
      ...['-device', `virtio-net-pci,netdev=net,mac=52:54:00:00:00:0${number}`],
    ];
    const command = machineCommand({ kernel, memory: '1536M', command: file('command'), devices });
    this.all.push(new Host(name, command));
  }
}
