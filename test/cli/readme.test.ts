/** The tour of the README, command by command, prints what the README says. */
import { execFile } from 'node:child_process';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { pcowIn } from './outcome.js';
import { comparable, stepsOf } from '../../scripts/readme-tour.js';
import { scratchDirectory } from '../helpers/scratch.js';

const README = fileURLToPath(new URL('../../../README.md', import.meta.url));
const PROGRAM = fileURLToPath(new URL('../../cli/pcow.cjs', import.meta.url));

test.serial('the tour', async (t) => {
  const scratch = await scratchDirectory(t);
  const bin = path.join(scratch, 'bin');
  await mkdir(bin);
  await writeFile(
    path.join(bin, 'pcow'),
    `#!/bin/sh\nexec '${process.execPath}' '${PROGRAM}' "$@"\n`,
  );
  await chmod(path.join(bin, 'pcow'), 0o755);
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH ?? ''}:/usr/sbin:/sbin` };
  // Registered before anything is mounted; a successful tour leaves nothing mounted.
  t.teardown(() => pcowIn(scratch)('umount', 'mnt'));

  const steps = stepsOf(await readFile(README, 'utf8'));
  t.true(steps.length > 10);
  for (const { command, prints } of steps) {
    const printed = await new Promise<string>((resolve) => {
      execFile('bash', ['-c', command], { cwd: scratch, env }, (error, stdout, stderr) => {
        t.is(error, null, `${command}: ${stderr}`);
        resolve(stdout);
      });
    });
    t.is(comparable(printed, scratch), comparable(prints, scratch), command);
  }
});
