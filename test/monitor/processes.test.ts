/**
 * The monitor runs inside other programs. Whatever they do, it harms neither a mapping nor the
 * programs.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { attachedTo, monitored, monitorPrefix, monitorReport } from '../helpers/monitored.js';
import { imagesFor, MiB, type TestMount, mountedImages } from '../helpers/mount.js';
import { program } from '../helpers/program.js';

const run = promisify(execFile);
const SIZE = 4 * MiB;
const CASES = [
  ...[
    'unmap-beside-others',
    'replace-beside-others',
    'close-everything',
    'cancel',
    'cancel-another',
    'touch-in-handlers',
  ],
  ...[
    'children',
    'child-without-handlers',
    'split',
    'two-mappings',
    'every-part',
    'read-only',
    'limits',
  ],
  ...['exit-beside-stores', 'store-in-destructor'],
];

/** Images on one base, which is filled with 0x55. */
async function mountedClones(t: ExecutionContext<unknown>, ...names: string[]): Promise<TestMount> {
  const mount = await imagesFor(t, { base: SIZE });
  const base = await Image.open(mount.image('base'), { write: true });
  await base.write(Buffer.alloc(SIZE, 0x55), 0);
  await base.snapshot('s');
  await base.close();
  for (const name of names) {
    await Image.create(mount.image(name), { base: { path: mount.image('base'), snapshot: 's' } });
  }
  await mount.mount();
  return mount;
}

test.serial('programs that are careless with their mapping', async (t) => {
  const mount = await mountedClones(t, ...CASES, 'other');
  const cases = await program('process-cases', mount.scratch);
  for (const name of CASES) {
    const [command = '', ...words] = [
      ...monitorPrefix(),
      cases,
      mount.file(name),
      name,
      mount.file('other'),
    ];
    t.is((await run(command, words)).stdout, 'ok\n', name);
    await attachedTo(mount, name, null);
    await attachedTo(mount, 'other', null);
  }
  const base = await Image.open(mount.image('base'));
  const bytes = Buffer.alloc(SIZE);
  await base.read(bytes, 0, 's');
  await base.close();
  t.true(bytes.equals(Buffer.alloc(SIZE, 0x55)), 'the base is what it was');
});

test.serial(
  'an allocator that calls mmap and munmap by their names, and stores into the image under its lock',
  async (t) => {
    const mount = await mountedClones(t, 'vm1', 'vm2');
    const allocator = await program('own-allocator', mount.scratch);
    const [command = '', ...words] = [...monitorPrefix(), allocator, mount.file('vm1')];
    t.is((await run(command, words)).stdout, 'ok\n');
  },
);

test.serial(
  'an allocator that gives pages of an image back under its lock, while another mount does not answer',
  async (t) => {
    const mount = await mountedClones(t, 'vm1');
    const silent = await mountedImages(t, { vm2: MiB });
    const allocator = await program('own-allocator', mount.scratch);
    const it = await monitored(t, allocator, [mount.file('vm1'), silent.file('vm2')]);
    t.is(it.greeting, 'open');
    silent.daemon.kill('SIGSTOP');
    t.is(await it.ask('go'), 'ok');
    silent.daemon.kill('SIGCONT');
    await it.end();
  },
);

test.serial('msync over two images makes both durable', async (t) => {
  const mount = await mountedClones(t, 'vm1', 'vm2');
  const cases = await program('process-cases', mount.scratch);
  const conversation = await monitored(t, cases, [
    mount.file('vm1'),
    'two-images',
    mount.file('vm2'),
  ]);
  t.is(conversation.greeting, 'synced');
  for (const name of ['vm1', 'vm2']) t.is((await monitorReport(mount, name)).monitorSyncs, 1, name);
  await conversation.end();
});

test.serial('a surviving child does not keep the image of its killed parent', async (t) => {
  const mount = await mountedClones(t, 'vm1', 'vm2');
  const cases = await program('leave-child', mount.scratch);
  const [command = '', ...words] = [...monitorPrefix(), cases, mount.file('vm1')];
  const parent = spawn(command, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => parent.kill('SIGKILL'));
  const [line] = (await once(parent.stdout, 'data')) as [Buffer];
  const child = Number(line.toString());
  t.teardown(() => process.kill(child, 'SIGKILL'));
  await attachedTo(mount, 'vm1', parent.pid ?? 0);
  const ended = once(parent, 'exit');
  parent.kill('SIGKILL');
  await ended;
  await attachedTo(mount, 'vm1', null);
  await mount.write('after', 'vm1', 'snapshot'); // needs the lock
  t.notThrows(() => process.kill(child, 0));
});

test('the library exports what it interposes, and no part of the C++ library', async (t) => {
  const { stdout } = await run('nm', [
    '-D',
    '--defined-only',
    '--format=posix',
    'native/build/Release/libpcow-monitor.so',
  ]);
  const names = stdout
    .trim()
    .split('\n')
    .map((line) => line.split(' ')[0] ?? '');
  t.true(names.includes('mmap'));
  t.deepEqual(
    names.filter((name) => !/^[a-z]\w+$/.test(name)),
    [],
  );
});
