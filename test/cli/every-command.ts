/**
 * A command line for each command, on one set of images: for properties that every command must
 * have, including new ones.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Image } from '../../src/engine/index.js';
import { pushImage } from '../../src/registry/index.js';
import { exportStream } from '../../src/stream/archive.js';
import { MiB } from '../helpers/mount.js';
import { reading, streamOf, working } from '../stream/images.js';

export const IMAGE_SIZE = 4 * MiB;

/**
 * Makes `images` with base (snapshots one and two), vm on base@one (snapshot s1), child on
 * base@two, and lone (s1); and beside it lone.stream, vm.export, vm.layout and disk.raw, from which
 * images can be made.
 */
export async function makeImages(directory: string): Promise<void> {
  const at = (name: string) => path.join(directory, 'images', `${name}.pcow`);
  await mkdir(path.join(directory, 'images'), { recursive: true });
  const fill = (image: Image, byte: number) =>
    image.write(Buffer.alloc(256 * 1024, byte), byte * 65536);
  await Image.create(at('base'), { size: IMAGE_SIZE });
  await working(at('base'), async (image) => {
    await fill(image, 1);
    await image.snapshot('one');
    await fill(image, 2);
    await image.snapshot('two');
  });
  await Image.create(at('vm'), { base: { path: at('base'), snapshot: 'one' } });
  await Image.create(at('lone'), { size: IMAGE_SIZE });
  await Image.create(at('child'), { base: { path: at('base'), snapshot: 'two' } });
  await working(at('child'), (image) => fill(image, 9));
  for (const name of ['vm', 'lone']) {
    await working(at(name), async (image) => {
      await fill(image, 3);
      await image.snapshot('s1');
      await fill(image, 5);
    });
  }
  await writeFile(path.join(directory, 'lone.stream'), await streamOf(at('lone'), 's1', null));
  await writeFile(path.join(directory, 'disk.raw'), Buffer.alloc(2 * MiB, 7));
  await reading(at('vm'), async (image) => {
    const pieces: Buffer[] = [];
    for await (const piece of exportStream(image)) pieces.push(piece);
    await writeFile(path.join(directory, 'vm.export'), Buffer.concat(pieces));
    await pushImage(image, 's1', `oci:${path.join(directory, 'vm.layout')}:s1`);
  });
}

/** What a command does to the images. */
export type Doing = 'reads' | 'changes' | 'makes' | 'nothing';

export interface Line {
  words: string[];
  doing: Doing;
  /** Read from standard input. */
  input?: string;
}

/** `at`: the path of the images, `images` or a mountpoint. Destructive commands are last. */
export function everyCommand(at: string): Line[] {
  const image = (name: string) => `${at}/${name}`;
  return [
    { words: ['info', image('vm')], doing: 'reads' },
    { words: ['list', at], doing: 'reads' },
    { words: ['map', image('vm')], doing: 'reads' },
    { words: ['diff', image('base@one'), 'two'], doing: 'reads' },
    { words: ['compare', image('vm'), image('vm')], doing: 'reads' },
    { words: ['measure', image('vm')], doing: 'reads' },
    { words: ['send', image('vm@s1')], doing: 'reads' },
    { words: ['check', image('vm')], doing: 'reads' },
    { words: ['scrub', image('vm')], doing: 'reads' },
    { words: ['prefetch', image('vm')], doing: 'reads' },
    { words: ['export', image('vm'), 'new.export'], doing: 'makes' },
    { words: ['convert', image('vm@s1'), 'new.raw'], doing: 'makes' },
    { words: ['create', image('new1'), '16M'], doing: 'makes' },
    { words: ['clone', image('vm@s1'), image('new2')], doing: 'makes' },
    { words: ['import', 'vm.export', image('new3')], doing: 'makes' },
    { words: ['push', image('vm@s1'), 'oci:layout:new'], doing: 'makes' },
    { words: ['pull', 'oci:vm.layout', image('new5')], doing: 'makes' },
    { words: ['pull', '--lazy', 'oci:vm.layout', image('new6')], doing: 'makes' },
    { words: ['trace', image('vm')], doing: 'nothing' },
    { words: ['receive', image('new4')], doing: 'makes', input: 'lone.stream' },
    { words: ['snapshot', image('vm@new')], doing: 'changes' },
    { words: ['rollback', image('vm@s1')], doing: 'changes' },
    { words: ['resize', image('vm'), '8M'], doing: 'changes' },
    { words: ['rebase', image('vm'), '--base', image('base@two')], doing: 'changes' },
    { words: ['commit', image('child'), '--name', 'committed'], doing: 'changes' },
    { words: ['compact', image('lone')], doing: 'changes' },
    { words: ['flatten', image('vm')], doing: 'changes' },
    { words: ['delete', image('lone@s1')], doing: 'changes' },
    { words: ['rename', image('lone'), 'other'], doing: 'changes' },
    { words: ['rm', image('child')], doing: 'changes' },
    { words: ['recover', at], doing: 'changes' },
    { words: ['doctor', at], doing: 'makes' },
    { words: ['qemu-args', image('base')], doing: 'reads' },
    { words: ['libvirt-xml', image('base')], doing: 'reads' },
    { words: ['top', at, '--once'], doing: 'reads' },
    { words: ['run', '--print-env'], doing: 'nothing' },
    { words: ['completion', 'words', '--', 'info', `${at}/`], doing: 'nothing' },
    { words: ['login', '-u', 'me', '--password-stdin', 'localhost:1'], doing: 'nothing' },
    { words: ['logout', 'localhost:1'], doing: 'nothing' },
    { words: ['exit-codes'], doing: 'nothing' },
    { words: ['mount', 'images', 'mnt'], doing: 'nothing' },
    { words: ['umount', 'mnt'], doing: 'nothing' },
  ];
}
