/**
 * The most likely mistakes at a terminal, each with the exit code and the complete answer: what
 * happened, to which image, and what to do next. They change nothing, so they share one directory.
 * The limits of each kind of value are in `bad-input.test.ts`; refusals of mounts are in
 * `mounted.test.ts`.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { working } from '../stream/images.js';
import { type Outcome, shellIn, succeeds } from './outcome.js';

const run = promisify(execFile);
const MiB = 2 ** 20;

interface Mistake {
  typed: string;
  exit: number;
  /** HERE is the directory; MOUNT and HOLDER are the processes that have images. */
  says: string;
  next?: string;
}

const MISTAKES: Mistake[] = [
  {
    typed: 'pcow create 10G new',
    exit: 3,
    says: '"new" is not a size',
    next: 'did you mean “pcow create new 10G”?',
  },
  {
    typed: 'pcow create new 10 G',
    exit: 2,
    says: "too many arguments for 'create'. Expected 2 arguments but got 3.",
    next: 'pcow create [options] <image> [size] (more: pcow create --help)',
  },
  {
    typed: 'pcow create new --size 1G',
    exit: 2,
    says: 'unknown option "--size"',
    next: 'the size comes after the name: pcow create IMAGE SIZE',
  },
  {
    typed: 'pcow create lone 1G',
    exit: 5,
    says: 'HERE/lone.pcow exists already',
    next: 'choose another name, or replace it with --force',
  },
  {
    typed: 'pcow info disk.qcow2',
    exit: 3,
    says: 'HERE/disk.qcow2 is not a Pcow image (no magic number at its start)',
    next: '“pcow convert FILE NEW” makes an image from a file in another format',
  },
  {
    typed: 'pcow info full',
    exit: 4,
    says: 'there is no image "full": this is a directory',
    next: '“pcow list full” shows the images of that directory',
  },
  {
    typed: 'pcow info nowhere/vm1',
    exit: 4,
    says: 'there is no image "nowhere/vm1"',
    next: 'there is no directory "nowhere" either: check the path',
  },
  {
    typed: 'pcow info lost',
    exit: 10,
    says: 'HERE/lost.pcow stands on HERE/gone.pcow, which does not exist',
    next: 'put the base back, or give its new path: pcow rebase IMAGE --unsafe --base BASE',
  },
  {
    typed: 'pcow ls',
    exit: 2,
    says: "unknown command 'ls' (Did you mean list?)",
    next: 'pcow --help',
  },
  {
    typed: 'pcow help creat',
    exit: 2,
    says: "unknown command 'creat' (Did you mean create?)",
    next: 'pcow --help',
  },
  {
    typed: 'pcow list vm1@one',
    exit: 2,
    says: '"vm1@one" names a snapshot, but this command is for a whole image',
    next: 'omit the name of the snapshot: vm1',
  },
  {
    typed: 'pcow snapshot vm1 three',
    exit: 2,
    says: '"vm1" does not name a snapshot',
    next: 'write IMAGE@NAME: vm1@NAME',
  },
  {
    typed: 'pcow snapshot vm1@one',
    exit: 5,
    says: 'HERE/vm1.pcow already has a snapshot named one',
    next: 'choose another name',
  },
  {
    typed: 'pcow snapshot held@one',
    exit: 6,
    says: 'HERE/held.pcow is open for writing by node (pid HOLDER)',
    next: 'end that process first; to change an image in a mount, use the mount',
  },
  {
    typed: 'pcow rollback vm1 one',
    exit: 2,
    says: "too many arguments for 'rollback'. Expected 1 argument but got 2.",
    next: 'pcow rollback [options] <image@name> (more: pcow rollback --help)',
  },
  {
    typed: 'pcow rollback vm1@three',
    exit: 4,
    says: 'HERE/vm1.pcow has no snapshot named three',
    next: '“pcow list” shows the images of a directory and the snapshots of an image',
  },
  {
    typed: 'pcow delete vm1@one',
    exit: 6,
    says: "vm1@one can't be deleted: vm2.pcow stands on it",
    next: 'make those images stand on their own (pcow flatten), or delete them first (pcow rm)',
  },
  {
    typed: 'pcow delete images/disk@one',
    exit: 6,
    says: "the snapshot one of disk can't be deleted: child.pcow stands on it",
    next: 'make those images stand on their own (pcow flatten), or delete them first (pcow rm)',
  },
  {
    typed: 'pcow clone vm1',
    exit: 2,
    says: "missing required argument 'new'",
    next: 'pcow clone [options] <image[@snapshot]> <new> (more: pcow clone --help)',
  },
  {
    typed: 'pcow rm vm1',
    exit: 6,
    says: "HERE/vm1.pcow can't be deleted: vm2.pcow stands on it",
    next: 'make those images stand on their own (pcow flatten), or delete them first (pcow rm)',
  },
  {
    typed: 'pcow rm vm1@one',
    exit: 2,
    says: '"vm1@one" is a snapshot, and rm deletes whole images',
    next: 'to delete the snapshot: pcow delete vm1@one',
  },
  {
    typed: 'pcow rename vm1 lone',
    exit: 5,
    says: "HERE/vm1.pcow can't be renamed: HERE/lone.pcow exists already",
    next: 'choose another name',
  },
  {
    typed: 'pcow resize vm1 4M',
    exit: 3,
    says: 'vm1 has 8 MiB, and making it smaller loses the data after 4 MiB',
    next: 'if you want that: pcow resize vm1 4M --shrink',
  },
  {
    typed: 'pcow resize vm2 4M --shrink',
    exit: 3,
    says: "HERE/vm2.pcow can't have less than 8388608 bytes, which its base has: an image is never smaller than what it stands on",
    next: '“pcow info vm2” shows what that is: “pcow delete” removes a snapshot, “pcow flatten” the base',
  },
  {
    typed: 'pcow convert notes.txt lone',
    exit: 5,
    says: 'HERE/lone.pcow exists already',
    next: 'choose another name, or replace it with --force',
  },
  {
    typed: 'pcow convert notes.txt images/disk --force',
    exit: 6,
    says: "HERE/images/disk.pcow can't be replaced: child.pcow stands on it",
    next: 'make those images stand on their own (pcow flatten), or delete them first (pcow rm)',
  },
  {
    typed: 'pcow convert -f qcow2 notes.txt new',
    exit: 3,
    says: `qemu-img can't work on "HERE/notes.txt": Could not open 'HERE/notes.txt': Image is not in qcow2 format`,
    next: '“qemu-img info HERE/notes.txt” shows its format; omit the format to detect it',
  },
  {
    typed: 'pcow convert vm1 copy',
    exit: 2,
    says: 'the name "copy" does not show the format of the target',
    next: 'give the format: -O pcow, -O raw, -O qcow2',
  },
  {
    typed: 'pcow convert -O vdi vm1 vm1.vdi',
    exit: 2,
    says: "option '-O <format>' argument 'vdi' is invalid. Allowed choices are pcow, raw, qcow2.",
    next: 'pcow convert [options] <source> <target> (more: pcow convert --help)',
  },
  {
    typed: 'pcow convert -O raw vm1 full --force',
    exit: 3,
    says: '"full" names a directory, not a file',
    next: 'name the file in it',
  },
  {
    typed: 'pcow convert -O raw vm1 mnt/vm1.raw',
    exit: 3,
    says: '"mnt/vm1.raw" is in a mount, which contains only images',
    next: 'choose a directory that is not mounted',
  },
  {
    typed: 'pcow convert -O raw vm1 /sys/vm1.raw',
    exit: 7,
    says: "/sys/vm1.raw can't be made: this user may not write to its directory",
    next: 'choose another directory, or run as its owner',
  },
  {
    typed: 'pcow convert mnt/disk disk.raw',
    exit: 6,
    says: '"mnt/disk" is written in the mount HERE/mnt (process MOUNT), so a copy could be half old and half new',
    next: 'take a snapshot and convert that: pcow snapshot mnt/disk@now, then mnt/disk@now',
  },
  {
    typed: 'pcow rebase vm2',
    exit: 2,
    says: "required option '-b, --base <image[@snapshot]>' not specified",
    next: 'pcow rebase [options] <image> (more: pcow rebase --help)',
  },
  {
    typed: 'pcow rebase vm1 --base vm2',
    exit: 10,
    says: `"vm1" can't stand on "vm2", which stands on "vm1"`,
    next: 'choose another base',
  },
  {
    typed: 'pcow rebase mnt/child --base vm1@one',
    exit: 10,
    says: '"mnt/child" is mounted, and "vm1" is not in the same mount',
    next: 'move it into HERE/images, or end the mount first: pcow umount HERE/mnt',
  },
  {
    typed: 'pcow commit lone',
    exit: 3,
    says: 'lone has no base to commit to',
    next: 'pcow info shows what an image stands on',
  },
  {
    typed: 'pcow send vm1@two --from three',
    exit: 4,
    says: 'HERE/vm1.pcow has no snapshot named three',
    next: '“pcow list” shows the images of a directory and the snapshots of an image',
  },
  {
    typed: 'pcow receive new < two.stream',
    exit: 4,
    says: 'HERE/new.pcow does not exist, and the stream has only the changes after one: send that snapshot first',
    next: '“pcow list IMAGE”, here and at the sender, shows what both have',
  },
  {
    typed: 'pcow receive lone < two.stream',
    exit: 4,
    says: 'HERE/lone.pcow has no snapshot one, which the changes of two stand on: send one first',
    next: '“pcow list IMAGE”, here and at the sender, shows what both have',
  },
  {
    typed: 'pcow receive vm1 < two.stream',
    exit: 5,
    says: 'HERE/vm1.pcow already has this snapshot, as two',
    next: '“pcow list IMAGE”, here and at the sender, shows what both have',
  },
  {
    typed: 'pcow receive images/disk < two.stream',
    exit: 6,
    says: 'disk is in use in the mount on HERE/mnt, and receiving needs the image for itself',
    next: 'end the mount first: pcow umount HERE/mnt',
  },
  {
    typed: 'pcow receive new < /dev/null',
    exit: 9,
    says: 'the stream breaks off after 0 bytes: its sender or the connection has ended',
    next: 'nothing has arrived: see what the sender says, and send again',
  },
  {
    typed: 'pcow receive new < notes.txt',
    exit: 3,
    says: 'this is not a stream of pcow send or pcow export',
    next: '“pcow convert FILE NEW” makes an image from a file in another format',
  },
  {
    typed: 'pcow receive new < vm1.export',
    exit: 3,
    says: 'this is an export of a whole image: use pcow import',
  },
  {
    typed: 'pcow import two.stream new',
    exit: 3,
    says: 'this is a stream of pcow send: use pcow receive',
  },
  {
    typed: 'pcow import vm1.export vm1',
    exit: 5,
    says: 'HERE/vm1.pcow exists already',
    next: 'choose another name',
  },
  {
    typed: 'pcow export vm1 mnt/vm1.export',
    exit: 3,
    says: '"mnt/vm1.export" is in a mount, which contains only images',
    next: 'choose a directory that is not mounted',
  },
  {
    typed: 'pcow check vm1@one',
    exit: 2,
    says: '"vm1@one" names a snapshot, but this command is for a whole image',
    next: 'omit the name of the snapshot: vm1',
  },
  {
    typed: 'pcow check disk.qcow2 --repair',
    exit: 3,
    says: 'HERE/disk.qcow2 is not a Pcow image: its format is qcow2',
    next: 'qemu-img check -f qcow2 HERE/disk.qcow2',
  },
  {
    typed: 'pcow check images/disk --repair',
    exit: 6,
    says: 'disk is mounted on HERE/mnt: a repair needs the image for itself',
    next: 'end the mount first: pcow umount HERE/mnt',
  },
  {
    typed: 'pcow mount images mnt',
    exit: 11,
    says: 'HERE/images is mounted on HERE/mnt already: "pcow umount HERE/mnt" ends that mount',
  },
  {
    typed: 'pcow mount images full',
    exit: 11,
    says: 'the mountpoint HERE/full is not empty: choose an empty directory',
  },
  {
    typed: 'pcow mount images nowhere',
    exit: 11,
    says: 'the mountpoint HERE/nowhere does not exist: create it first ("mkdir -p")',
  },
  {
    typed: 'pcow mount vm1.pcow full',
    exit: 11,
    says: 'HERE/vm1.pcow is not a directory: name the directory of the images, not an image',
  },
  {
    typed: 'pcow umount full',
    exit: 11,
    says: 'no image directory is mounted on full: "pcow list DIR" shows where DIR is mounted',
  },
  {
    typed: 'pcow umount mnt/disk',
    exit: 11,
    says: 'no image directory is mounted on mnt/disk: "pcow list DIR" shows where DIR is mounted',
  },
  {
    typed: 'pcow qemu-args lone',
    exit: 11,
    says: '"lone" is not mounted, and QEMU maps the flat file of a mount',
    next: 'pcow mount DIR MOUNTPOINT, then name MOUNTPOINT/NAME',
  },
  {
    typed: 'pcow top full',
    exit: 11,
    says: '"full" is not mounted',
    next: 'pcow mount DIR MOUNTPOINT',
  },
  {
    typed: 'pcow-img create 64G 128 new.img',
    exit: 3,
    says: '"64G" is not a block size in KiB',
    next: 'write a plain number: pcow-img create 64 128 NEW',
  },
  {
    typed: 'pcow-img create 64 new.img 128',
    exit: 3,
    says: '"new.img" is not a size in GiB',
    next: 'write a plain number: pcow-img create 64 128 NEW',
  },
  {
    typed: 'pcow-img create 64 1 lone.pcow',
    exit: 5,
    says: 'HERE/lone.pcow exists already',
    next: 'choose another name, or remove it first',
  },
  {
    typed: 'pcow-img rollback vm1 one',
    exit: 4,
    says: 'there is no snapshot "one" of "vm1": it has 1 to 2',
    next: 'pcow-img info vm1',
  },
  {
    typed: 'pcow-img rebase lone',
    exit: 2,
    says: "missing required argument 'base'",
    next: 'pcow-img rebase [options] <image> <base> (more: pcow-img rebase --help)',
  },
];

interface Place {
  directory: string;
  shell: (line: string) => Promise<Outcome>;
  mount: number;
  holder: number;
}

/**
 * vm1 (snapshots one and two) with vm2 on vm1@one; lone, lost (its base is gone), held (a process
 * has it open); in images/, mounted on mnt/, disk (snapshot one) with child on it; and files that
 * are not images.
 */
async function prepare(t: ExecutionContext<unknown>): Promise<Place> {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  for (const name of ['images', 'mnt', 'full']) await mkdir(at(name));
  const shell = await shellIn(t, directory);
  await Image.create(at('vm1.pcow'), { size: 8 * MiB });
  await working(at('vm1.pcow'), async (image) => {
    await image.write(Buffer.alloc(4096, 1), 0);
    await image.snapshot('one');
    await image.write(Buffer.alloc(4096, 2), 0);
    await image.snapshot('two');
  });
  await Image.create(at('vm2.pcow'), { base: { path: at('vm1.pcow'), snapshot: 'one' } });
  for (const name of ['lone', 'held', 'gone', 'images/disk'])
    await Image.create(at(`${name}.pcow`), { size: 8 * MiB });
  for (const name of ['gone', 'images/disk'])
    await working(at(`${name}.pcow`), (image) => image.snapshot('one'));
  await Image.create(at('lost.pcow'), { base: { path: at('gone.pcow'), snapshot: 'one' } });
  await Image.create(at('images/child.pcow'), {
    base: { path: at('images/disk.pcow'), snapshot: 'one' },
  });
  await rm(at('gone.pcow'));
  await writeFile(at('full/file'), '');
  await writeFile(at('notes.txt'), 'Buy milk. '.repeat(20));
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', at('disk.qcow2'), '8M']);
  await succeeds(t, shell('pcow send vm1@two --from one > two.stream'));
  await succeeds(t, shell('pcow export vm1 vm1.export'));
  const daemon = await mounted(t, at('images'), at('mnt'));
  const program = fileURLToPath(new URL('../engine/hold-image.js', import.meta.url));
  const holder = spawn(process.execPath, [program, at('held.pcow')], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.teardown(() => holder.kill('SIGKILL'));
  await once(holder.stdout, 'data');
  return { directory, shell, mount: daemon.pid ?? 0, holder: holder.pid ?? 0 };
}

/**
 * All files with their sizes. (Opening an image for writing marks it, so times cannot be compared.)
 */
async function filesOf(directory: string): Promise<string[]> {
  const names = (await readdir(directory, { recursive: true })).filter(
    (name) => !name.startsWith('mnt/'),
  );
  return Promise.all(
    names.sort().map(async (name) => `${name} ${(await stat(path.join(directory, name))).size}`),
  );
}

test('the most likely mistakes, and the answers', async (t) => {
  const { directory, shell, mount, holder } = await prepare(t);
  const before = await filesOf(directory);
  const made = async ({ typed, exit, says, next }: Mistake): Promise<void> => {
    const found = await shell(typed);
    const told = found.stderr
      .replaceAll(directory, 'HERE')
      .replaceAll(new RegExp(`\\b${mount}\\b`, 'g'), 'MOUNT')
      .replaceAll(new RegExp(`\\b${holder}\\b`, 'g'), 'HOLDER');
    const [program = ''] = typed.split(' ');
    const indent = ' '.repeat(program.length + 2);
    const stderr = `${program}: ${says}\n${next === undefined ? '' : `${indent}${next}\n`}`;
    t.deepEqual({ typed, ...found, stderr: told }, { typed, exit, stdout: '', stderr });
  };
  // One after another: several have the same image open for a moment.
  for (const mistake of MISTAKES) await made(mistake);
  t.deepEqual(await filesOf(directory), before);
});
