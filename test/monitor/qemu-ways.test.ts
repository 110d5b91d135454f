/**
 * QEMU as distributions and libvirt start it: with other allocators, in the background, with fewer
 * rights, and with a filter of system calls. Memory of an image is plugged and unplugged while it
 * runs. Its processors are paused.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';

import test, { type ExecutionContext } from 'ava';

import { checkImage, Image } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';
import { attachedTo } from '../helpers/monitored.js';
import { scratchDirectory } from '../helpers/scratch.js';

const SIZE = 16 * MiB;
const FULL = Buffer.alloc(SIZE, 0x55);

/** As libvirt requests it. QEMU itself cannot go to the background then. */
const SANDBOX = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny';

interface Way {
  preload?: string;
  options: string[];
  /** It may not open files that are plugged in later: it runs as another user then. */
  mayPlug?: false;
}

const WAYS: Record<string, Way> = {
  'with jemalloc': { preload: 'libjemalloc.so.2', options: [] },
  'with tcmalloc': { preload: 'libtcmalloc_minimal.so.4', options: [] },
  'in the background': { options: ['-daemonize'] },
  'with a filter of system calls': { options: ['-sandbox', SANDBOX] },
  'as another user': { options: ['-runas', 'nobody'], mayPlug: false },
  'in the background, with a filter, with jemalloc': {
    preload: 'libjemalloc.so.2',
    options: ['-daemonize', '-sandbox', 'on'],
  },
};

type Answer = { return: unknown } | { error: { desc: string } };

/** A connection to QEMU's monitor: https://www.qemu.org/docs/master/interop/qmp-spec.html */
class Qmp {
  readonly #lines: AsyncIterator<string>;

  private constructor(private readonly socket: ReturnType<typeof connect>) {
    this.#lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  }

  static async open(t: ExecutionContext<unknown>, socketPath: string): Promise<Qmp> {
    const socket = connect(socketPath);
    t.teardown(() => socket.destroy());
    await once(socket, 'connect');
    const qmp = new Qmp(socket);
    await qmp.#lines.next(); // its greeting
    await qmp.ask('qmp_capabilities');
    return qmp;
  }

  async ask(execute: string, words: Record<string, unknown> = {}): Promise<unknown> {
    this.socket.write(`${JSON.stringify({ execute, arguments: words })}\n`);
    for (;;) {
      const line = await this.#lines.next();
      if (line.done) throw new Error(`QEMU has ended: ${execute}`);
      const answer = JSON.parse(line.value) as Answer | { event: string };
      if ('error' in answer) throw new Error(`${execute}: ${answer.error.desc}`);
      if ('return' in answer) return answer.return;
    }
  }
}

async function mountedMemory(t: ExecutionContext<unknown>): Promise<TestMount> {
  const mount = await imagesFor(t, { base: SIZE });
  const base = await Image.open(mount.image('base'), { write: true });
  await base.write(FULL, 0);
  await base.snapshot('s');
  await base.close();
  for (const name of ['cold', 'hot'])
    await Image.create(mount.image(name), { base: { path: mount.image('base'), snapshot: 's' } });
  await mount.mount();
  return mount;
}

/**
 * Unplugs and plugs: each time all memory is touched, so that every block becomes the image's own.
 */
async function plugs(
  t: ExecutionContext<unknown>,
  mount: TestMount,
  qmp: Qmp,
  pid: number,
): Promise<void> {
  for (let round = 0; round < 3; ++round) {
    await qmp.ask('object-add', {
      ...{ 'qom-type': 'memory-backend-file', id: 'hot', 'mem-path': mount.file('hot') },
      ...{ size: SIZE, share: true, prealloc: true },
    });
    await attachedTo(mount, 'hot', pid);
    await mount.write(`s${round}`, 'hot', 'snapshot');
    await qmp.ask('object-del', { id: 'hot' });
    await attachedTo(mount, 'hot', null);
    t.true((await readFile(mount.file('hot'))).equals(FULL));
  }
}

for (const [name, way] of Object.entries(WAYS)) {
  test.serial(`QEMU ${name}`, async (t) => {
    const mount = await mountedMemory(t);
    const scratch = await scratchDirectory(t);
    await chmod(scratch, 0o777);
    const [socket, pidFile, saved] = ['qmp', 'pid', 'memory'].map((file) =>
      path.join(scratch, file),
    ) as [string, string, string];
    const qemu = spawn(
      process.execPath,
      [
        ...[pcowProgram, 'run', '--', 'qemu-system-x86_64'],
        ...[
          '-machine',
          'q35,nvdimm=on,accel=tcg',
          '-m',
          '64M,slots=2,maxmem=1G',
          '-nodefaults',
          '-display',
          'none',
          '-S',
        ],
        ...[
          '-object',
          `memory-backend-file,id=cold,share=on,mem-path=${mount.file('cold')},size=${SIZE}`,
        ],
        ...['-device', 'nvdimm,id=nvdimm,memdev=cold', '-qmp', `unix:${socket},server=on,wait=off`],
        ...['-pidfile', pidFile, ...way.options],
      ],
      {
        stdio: ['ignore', 'ignore', 'inherit'],
        env: { ...process.env, LD_PRELOAD: way.preload ?? '' },
      },
    );
    t.teardown(() => qemu.kill('SIGKILL'));
    await eventually(async () => (await readFile(pidFile, 'utf8').catch(() => '')).endsWith('\n'));
    const pid = Number(await readFile(pidFile, 'utf8'));
    if (pid !== qemu.pid) t.teardown(() => killIfThere(pid));
    await attachedTo(mount, 'cold', pid);

    const qmp = await Qmp.open(t, socket);
    const [device] = (await qmp.ask('query-memory-devices')) as { data: { addr: number } }[];
    await mount.write('live', 'cold', 'snapshot');
    await qmp.ask('pmemsave', { val: device?.data.addr, size: SIZE, filename: saved });
    t.true((await readFile(saved)).equals(FULL), 'what the guest would read');
    if (way.mayPlug !== false) await plugs(t, mount, qmp, pid);

    await qmp.ask('quit');
    await attachedTo(mount, 'cold', null);
    await mount.unmount();
    for (const image of ['cold', 'hot'])
      t.deepEqual((await checkImage(mount.image(image))).findings, [], image);
  });
}

/** A QEMU in the background, which is not a child of the test. */
function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // it has ended, as it should
  }
}
