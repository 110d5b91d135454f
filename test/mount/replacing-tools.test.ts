/**
 * Ordinary tools that replace a file remove it first: none of them may destroy an image that way.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { MiB, mountedImages } from '../helpers/mount.js';

const run = promisify(execFile);

const TOOLS: Record<string, string> = {
  tar: 'tar -C mnt -xf vm.tar',
  'tar --overwrite': 'tar -C mnt --overwrite -xf vm.tar',
  'tar --unlink-first': 'tar -C mnt --unlink-first -xf vm.tar',
  mv: 'cp new again && mv -f again mnt/vm',
  install: 'install new mnt/vm',
  'cp --remove-destination': 'cp --remove-destination new mnt/vm',
  'mv of a flat file': 'mv -f mnt/other mnt/vm',
  ln: 'ln -f new mnt/vm',
  'ln -s': 'ln -sf new mnt/vm',
  rm: 'rm -f mnt/vm',
  find: 'find mnt -name vm -delete',
  unlink: 'unlink mnt/vm',
};

test.serial(
  'no tool that replaces or removes a flat file removes an image with data',
  async (t) => {
    const mount = await mountedImages(t, { vm: MiB, other: MiB });
    const at = (name: string) => path.join(mount.scratch, name);
    const content = randomBytes(MiB);
    await writeFile(at('new'), content);
    await mkdir(at('backup'));
    await writeFile(at('backup/vm'), content);
    await run('tar', ['-C', at('backup'), '-cf', at('vm.tar'), 'vm']);
    await writeFile(mount.file('other'), 'theirs', { flag: 'r+' });
    await writeFile(mount.file('vm'), 'old', { flag: 'r+' });
    await mount.write('kept', 'vm', 'snapshot');
    for (const [tool, command] of Object.entries(TOOLS)) {
      const failed = await run('sh', ['-c', command], { cwd: mount.scratch }).then(
        () => false,
        () => true,
      );
      t.is(
        (await readFile(mount.control('vm', 'at', 'kept'))).toString('latin1', 0, 3),
        'old',
        tool,
      );
      t.is((await readFile(mount.file('other'))).toString('latin1', 0, 6), 'theirs', tool);
      t.deepEqual(await readdir(mount.images), ['other.pcow', 'vm.pcow'], tool);
      // Tools that write to the existing file, as tar --overwrite does, work.
      if (!failed) t.true(content.equals(await readFile(mount.file('vm'))), tool);
    }
    await t.throwsAsync(rm(mount.file('vm')), { code: 'EPERM' });
    t.regex((await mount.status('vm')).lastError?.message ?? '', /vm has snapshots, .+ "pcow rm"/);
  },
);

test.serial(
  'rm deletes an image that holds nothing, and none with data; "remove" deletes any',
  async (t) => {
    const mount = await mountedImages(t, { empty: MiB, full: MiB, base: MiB });
    await rm(mount.file('empty'));
    t.deepEqual(await readdir(mount.images), ['base.pcow', 'full.pcow']);
    await writeFile(mount.file('full'), 'data', { flag: 'r+' });
    await t.throwsAsync(rm(mount.file('full')), { code: 'EPERM' });
    t.regex(
      (await mount.status('full')).lastError?.message ?? '',
      /full holds data, .+\.pcow\/full\/remove/,
    );
    t.regex(
      await mount.refused('EINVAL', 'base', 'full', 'remove'),
      /write its own name, not "base"/,
    );
    await mount.write('s', 'full', 'snapshot');
    t.regex(await readFile(mount.control('full', 'remove'), 'utf8'), /write full to delete/);
    await mount.write('full', 'full', 'remove');
    await mount.write('child', 'base', 'clone');
    t.regex(await mount.refused('EBUSY', 'base', 'base', 'remove'), /child\.pcow stands on it/);
    t.deepEqual(await readdir(mount.images), ['base.pcow', 'child.pcow']);
  },
);
