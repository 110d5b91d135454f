import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort, isOpen } from '../ports.js';

/** Debian's registry, on this machine. What it keeps outlives its process, but not close(). */
export class Registry {
  readonly #directory = mkdtempSync(join(tmpdir(), 'pcow-registry-'));
  #process: ChildProcess | undefined;

  private constructor(
    /** HOST:PORT. */
    readonly host: string,
    private readonly port: number,
  ) {
    writeFileSync(
      join(this.#directory, 'config.yml'),
      `version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: ${this.#directory}/data\n` +
        `http:\n  addr: 127.0.0.1:${port}\n  secret: demo\n`,
    );
  }

  static async make(): Promise<Registry> {
    const port = await freePort();
    return new Registry(`localhost:${port}`, port);
  }

  async start(): Promise<void> {
    // It takes variables such as REGISTRY_AUTH_FILE for its own configuration.
    const env = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !name.startsWith('REGISTRY_')),
    );
    const file = join(this.#directory, 'config.yml');
    this.#process = spawn('docker-registry', ['serve', file], { stdio: 'ignore', env });
    while (!(await isOpen(this.port))) {
      if (this.#process.exitCode !== null) throw new Error('docker-registry has ended');
      await sleep(50);
    }
  }

  async stop(): Promise<void> {
    const running = this.#process;
    this.#process = undefined;
    if (running?.exitCode !== null || running.signalCode !== null) return;
    const ended = once(running, 'exit');
    running.kill('SIGKILL');
    await ended;
  }

  async close(): Promise<void> {
    await this.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
