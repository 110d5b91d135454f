/**
 * Completion: the candidates, and that each shell's script requests them and uses them in the right
 * position.
 */
import { execFile } from 'node:child_process';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { complete } from '../../cli/completion/candidates.js';
import { pcowProgram as program } from '../../cli/pcow-program.js';
import { Image } from '../../src/engine/index.js';
import { mountedImages, MiB } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds } from './outcome.js';

async function values(...words: string[]): Promise<string[]> {
  const { candidates, shells } = await complete(await program(), words);
  return [...(shells === null ? [] : [`:${shells}`]), ...candidates.map(({ value }) => value)];
}

/** Images vm1 (with the snapshots one and two) and vm2. */
async function stage(t: ExecutionContext<unknown>): Promise<string> {
  const scratch = await scratchDirectory(t);
  await mkdir(path.join(scratch, 'images'));
  for (const name of ['vm1', 'vm2'])
    await Image.create(path.join(scratch, `images/${name}.pcow`), { size: MiB });
  await writeFile(path.join(scratch, 'images/notes.txt'), '');
  const image = await Image.open(path.join(scratch, 'images/vm1.pcow'), { write: true });
  await image.snapshot('one');
  await image.snapshot('two');
  await image.close();
  return scratch;
}

test('commands with their descriptions; options, but none twice', async (t) => {
  t.deepEqual(await values('resi'), ['resize']);
  t.deepEqual(await values('help', 'resi'), ['resize']);
  const all = await complete(await program(), ['']);
  t.deepEqual(
    all.candidates.map(({ value }) => value),
    [...(await program()).commands.map((command) => command.name()), 'help'],
  );
  t.true(all.candidates.every(({ description }) => description !== ''));
  t.deepEqual(await values('mount', '--read'), ['--read-only']);
  t.deepEqual(await values('mount', '--read-only', '--read'), []);
  t.deepEqual(await values('no-such-command', ''), []);
});

test('values of options, and candidates for arguments', async (t) => {
  t.deepEqual(await values('qemu-args', '--device', ''), ['virtio-pmem', 'nvdimm']);
  t.deepEqual(await values('qemu-args', '--device=nv'), ['--device=nvdimm']);
  t.deepEqual(await values('mount', '--log', ''), [':files']);
  t.deepEqual(await values('mount', ''), [':directories']);
  t.deepEqual(await values('mount', '--log', 'x', '--read-only', ''), [':directories']);
  t.deepEqual(await values('run', '--', 'qe'), [':commands']);
  t.deepEqual(await values('completion', 'z'), ['zsh']);
  t.deepEqual(await values('resize', 'vm1', ''), []);
});

test('images without “.pcow”, directories, snapshots', async (t) => {
  const scratch = await stage(t);
  t.deepEqual(await values('info', `${scratch}/im`), [`${scratch}/images/`]);
  t.deepEqual(await values('info', `${scratch}/images/`), [
    `${scratch}/images/vm1`,
    `${scratch}/images/vm2`,
  ]);
  t.deepEqual(await values('qemu-args', 'x', `${scratch}/images/vm2`), [`${scratch}/images/vm2`]);
  t.deepEqual(await values('rollback', `${scratch}/images/vm1`), [`${scratch}/images/vm1@`]);
  t.deepEqual(await values('rollback', `${scratch}/images/vm1@`), [
    `${scratch}/images/vm1@one`,
    `${scratch}/images/vm1@two`,
  ]);
  t.deepEqual(await values('clone', `${scratch}/images/vm1.pcow@t`), [
    `${scratch}/images/vm1.pcow@two`,
  ]);
  t.deepEqual(await values('info', `${scratch}/none/`), []);
});

test.serial('mounted images, and mountpoints', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  t.deepEqual(await values('info', `${mount.point}/v`), [mount.file('vm1'), mount.file('vm2')]);
  t.true((await values('umount', '')).includes(mount.point));
});

test('the program answers its scripts', async (t) => {
  const pcow = pcowIn('/');
  t.is(
    await succeeds(t, pcow('completion', 'words', '--', 'resi')),
    'resize\tmake an image larger or smaller\n',
  );
  await fails(t, pcow('completion', 'tcsh'), 2, /bash, zsh, fish/);
  await fails(t, pcow('completion', 'bash', 'x'), 2, /no more arguments/);
});

const TYPE = fileURLToPath(new URL('../../../test/programs/type-and-run.py', import.meta.url));

const SHELLS = {
  bash: {
    command: ['bash', '--norc', '--noprofile', '-i'],
    source: 'source <(pcow completion bash)',
  },
  zsh: {
    command: ['zsh', '-f', '-i'],
    source: 'autoload -U compinit; compinit -D -u; source <(pcow completion zsh)',
  },
  fish: { command: ['fish', '--no-config', '-i'], source: 'pcow completion fish | source' },
};

for (const [shell, { command, source }] of Object.entries(SHELLS)) {
  test(`${shell}: the tab key`, async (t) => {
    const scratch = await stage(t);
    // Records its arguments, but answers the script.
    const stub = `#!/bin/sh\ncase $1 in completion) exec '${process.execPath}' '${pcowProgram}' "$@";; esac\necho "<ran $*><""done>"\n`;
    await writeFile(path.join(scratch, 'pcow'), stub);
    await chmod(path.join(scratch, 'pcow'), 0o755);
    const typed: [line: string, runs: string][] = [
      ['pcow resi\\t', 'resize'],
      ['pcow mount --read-\\t', 'mount --read-only'],
      ['pcow info images/vm1\\t', 'info images/vm1'],
      ['pcow info ima\\tvm2', 'info images/vm2'],
      ['pcow rollback images/vm1@o\\t', 'rollback images/vm1@one'],
      ['pcow rollback images/vm2\\tx', 'rollback images/vm2@x'],
      ['pcow create --base images/vm1@t\\tnew', 'create --base images/vm1@two new'],
      ['pcow list ima\\t', 'list images'],
    ];
    const lines = [`${source}; echo '<do''ne>'`, ...typed.map(([line]) => line)];
    const shown = await new Promise<string>((resolve) => {
      execFile(
        'python3',
        [TYPE, ...command, '--', ...lines],
        {
          cwd: scratch,
          timeout: 600_000,
          env: { ...process.env, PATH: `${scratch}:${process.env.PATH ?? ''}` },
        },
        (error, stdout, stderr) => {
          t.is(error, null, stdout + stderr);
          resolve(stdout);
        },
      );
    });
    const ran = [...shown.matchAll(/<ran ([^>]*?)\/?>/g)].map(([, words = '']) => words.trim());
    t.deepEqual(
      ran,
      typed.map(([, runs]) => runs),
      shown,
    );
  });
}
