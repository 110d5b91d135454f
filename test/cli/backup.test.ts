/** packaging/: the backup for cron, and the metrics for the textfile collector. */
import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import { Image } from '../../src/engine/index.js';
import { MiB, mountedImages } from '../helpers/mount.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { pcowIn, shellIn, succeeds } from './outcome.js';

const packaging = fileURLToPath(new URL('../../../packaging/', import.meta.url));
const run = promisify(execFile);

async function write(file: string, byte: number): Promise<void> {
  const image = await Image.open(file, { write: true });
  await image.write(Buffer.alloc(4096, byte), byte * 4096);
  await image.close();
}

async function snapshotsOf(file: string): Promise<string[]> {
  const image = await Image.open(file);
  try {
    return image.snapshotNames();
  } finally {
    await image.close();
  }
}

test('a backup copies what changed, keeps the requested number of snapshots, and names what it cannot read', async (t) => {
  const scratch = await scratchDirectory(t);
  const shell = await shellIn(t, scratch);
  const at = (...names: string[]) => path.join(scratch, ...names);
  await mkdir(at('images'));
  await mkdir(at('copies'));
  await Image.create(at('images/vm1.pcow'), { size: MiB });
  await Image.create(at('images/vm2.pcow'), { size: MiB });
  const backup = () => shell(`${packaging}backup/pcow-backup images copies 2`);
  for (const round of [1, 2, 3]) {
    await write(at('images/vm1.pcow'), round);
    await succeeds(t, backup());
  }
  const names = await snapshotsOf(at('images/vm1.pcow'));
  t.is(names.length, 2);
  t.deepEqual(await snapshotsOf(at('copies/vm1.pcow')), names);
  t.is((await snapshotsOf(at('copies/vm2.pcow'))).length, 2);
  const pcow = pcowIn(scratch);
  for (const name of names)
    await succeeds(t, pcow('compare', `images/vm1@${name}`, `copies/vm1@${name}`));

  await writeFile(at('images/bad.pcow'), 'no image at all');
  const { exit, stderr } = await backup();
  t.is(exit, 1);
  t.regex(stderr, /^pcow-backup: bad was not backed up: .*bad\.pcow/m);
  t.not((await snapshotsOf(at('copies/vm1.pcow'))).at(-1), names.at(-1), 'the others are');
});

test('a receiver that fails makes the backup fail, and the next backup continues', async (t) => {
  const scratch = await scratchDirectory(t);
  const shell = await shellIn(t, scratch);
  await mkdir(path.join(scratch, 'images'));
  await mkdir(path.join(scratch, 'copies'));
  await Image.create(path.join(scratch, 'images/vm1.pcow'), { size: MiB });
  await writeFile(path.join(scratch, 'copies/vm1.pcow'), 'in the way');
  const { exit, stderr } = await shell(`${packaging}backup/pcow-backup images copies`);
  t.is(exit, 1);
  t.regex(stderr, /vm1 was not backed up/);
  await succeeds(
    t,
    shell(`rm copies/vm1.pcow && sleep 1 && ${packaging}backup/pcow-backup images copies`),
  );
});

test.serial(
  'the collector gets the metrics of a mount, or the report that it does not answer',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    await writeFile(mount.image('bad'), 'no image at all');
    const file = path.join(mount.scratch, 'pcow.prom');
    const collect = async () => {
      await run(`${packaging}prometheus/pcow-textfile`, [mount.point, file]);
      return readFile(file, 'utf8');
    };
    const text = await collect();
    t.true(text.includes(`pcow_up{mountpoint="${mount.point}"} 1\n`));
    t.regex(text, /^pcow_image_state\{image="bad",state="not an image"\} 1$/m);
    t.regex(text, /^pcow_image_state\{image="vm1",state="ok"\} 1$/m);
    t.regex(text, /^pcow_disk_free_bytes\{image="vm1"\} \d+$/m);
    // Each alert uses metrics that exist.
    const alerts = await readFile(`${packaging}prometheus/pcow-alerts.yml`, 'utf8');
    const monitors = ['pcow_stalled', 'pcow_mappings'];
    for (const [name] of alerts.matchAll(/\bpcow_\w+/g)) {
      t.true(text.includes(`# TYPE ${name} `) || monitors.includes(name), name);
    }
    await mount.unmount();
    t.true((await collect()).includes(`pcow_up{mountpoint="${mount.point}"} 0\n`));
  },
);
