import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pc from 'picocolors';
import { boot, type BootOptions } from '../guest/boot.js';
import { repository } from '../guest/files.js';
import { qemuCommand, type Guest } from '../guest/guest.js';
import { accelerator } from '../guest/accelerator.js';

/**
 * The environment of the demo: a temporary directory, a shell in it that knows `pcow`, at most one
 * running guest. Everything is printed as it happens. perform() leaves nothing behind, whatever
 * happens.
 */
export class Stage {
  readonly #directory = mkdtempSync(join(tmpdir(), 'pcow-demo-'));
  readonly #bin = join(this.#directory, '.bin');
  #guest: Guest | undefined;
  #interrupted = false;
  #scenes = 0;

  constructor() {
    mkdirSync(this.#bin);
    symlinkSync(join(repository, 'dist/cli/pcow.cjs'), join(this.#bin, 'pcow'));
  }

  scene(title: string): void {
    print(`\n${pc.bold(`${++this.#scenes}. ${title}`)}`);
  }

  /** Runs a command line as a user would type it, and prints both. Resolves with its output. */
  async shell(line: string): Promise<string> {
    this.#mayGoOn();
    print(`${pc.green('$')} ${line}`);
    const output = await this.#bash(line);
    printOutput(output);
    return output;
  }

  /** Boots a guest whose persistent memory is this flat file. */
  async bootOn(flatFile: string): Promise<void> {
    this.#mayGoOn();
    const json = await this.#bash(`pcow qemu-args ${flatFile} --memory 512M --json`);
    const { args } = JSON.parse(json) as { args: string[] };
    const program = join(repository, 'dist/cli/pcow.cjs');
    const options: BootOptions = {
      qemuArgs: args,
      pmemDevices: 1,
      commandPrefix: [program, 'run', '--'],
    };
    const by = await accelerator();
    const shown = qemuCommand({
      ...options,
      accelerator: by,
      commandPrefix: ['pcow', 'run', '--'],
      qemuArgs: [`$(pcow qemu-args ${flatFile} --memory 512M)`],
    });
    print(`${pc.green('$')} ${onLines([...shown, '-serial', 'stdio'])}`);
    this.#guest = await boot(options);
    print(
      pc.dim(
        `  the guest is up (${by === 'kvm' ? 'KVM' : 'software emulation: KVM does not run it here'})`,
      ),
    );
  }

  /** Runs a command line in the guest, and prints both. Resolves with its output. */
  async inGuest(line: string): Promise<string> {
    this.#mayGoOn();
    print(`${pc.cyan('guest#')} ${line}`);
    const output = await this.#runningGuest().must(line);
    printOutput(output);
    return output;
  }

  async powerOff(): Promise<void> {
    this.#mayGoOn();
    print(`${pc.cyan('guest#')} poweroff`);
    await this.#runningGuest().powerOff();
    this.#guest = undefined;
  }

  /** Makes the step for which the demo waits end soon, and the next step fail. */
  #interrupt(): void {
    this.#interrupted = true;
    void this.#guest?.kill();
  }

  /** Ends the guest, unmounts, and removes the directory. */
  async #close(mountPoint: string): Promise<void> {
    await this.#guest?.kill();
    const unmount = `! mountpoint -q ${mountPoint} || pcow umount ${mountPoint} || fusermount3 -u -z ${mountPoint}`;
    await this.#bash(unmount);
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /**
   * Plays a demo until its end, a failure or a signal; then cleans up. A guest that waits for
   * something ends only with its mount, so `end` comes last.
   */
  async perform(play: () => Promise<void>, mountPoint: string, end?: () => Promise<void>) {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () => {
        process.exitCode = 130;
        this.#interrupt();
      });
    }
    try {
      await play();
    } catch (error) {
      process.stderr.write(
        `\nThe demo ends here: ${error instanceof Error ? error.message : String(error)}\n`,
      );
      process.exitCode ??= 1;
    } finally {
      await this.#close(mountPoint);
      await end?.();
    }
  }

  #mayGoOn(): void {
    if (this.#interrupted) throw new Error('interrupted');
  }

  #runningGuest(): Guest {
    if (!this.#guest) throw new Error('no guest is running');
    return this.#guest;
  }

  async #bash(line: string): Promise<string> {
    const env = { ...process.env, PATH: `${this.#bin}:${process.env.PATH ?? ''}` };
    // Detached: Ctrl-C reaches only the demo, which lets a step end before it cleans up.
    return new Promise((resolve, reject) => {
      const shell = spawn('bash', ['-e', '-c', line], {
        cwd: this.#directory,
        env,
        detached: true,
      });
      shell.stdin.end();
      let output = '';
      let complaints = '';
      shell.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
      shell.stderr.setEncoding('utf8').on('data', (text: string) => (complaints += text));
      shell.on('error', reject);
      shell.on('close', (code) => {
        if (code === 0) resolve(output);
        else reject(new Error(`exit code ${code ?? 'none'} from: ${line}\n${output}${complaints}`));
      });
    });
  }
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function printOutput(output: string): void {
  for (const line of output.trimEnd().split('\n')) if (line !== '') print(`  ${line}`);
}

/** A long command, with one option and its value on each line. */
function onLines(words: string[]): string {
  const quoted = words.map((word) => (/^[\w./:,=$()-]+$|^\$\(/.test(word) ? word : `'${word}'`));
  return quoted.join(' ').replaceAll(/ (?=-[a-z]+ |\$\()/g, ' \\\n    ');
}
