/** `pcow top`: one look at a mount, with and without an attached process. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import test from 'ava';
import type { Look } from '../../src/client/activity.js';
import { mountedImages, MiB } from '../helpers/mount.js';
import { pcowProgram } from '../helpers/mounted.js';
import { Conversation, program } from '../helpers/program.js';
import { fails, pcowIn, succeeds } from './outcome.js';

const pcow = pcowIn('/');

test.serial('images, the attached process and its faults', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB });
  await mount.write('s', 'vm2', 'snapshot');
  const tool = await program('map-tool', mount.scratch);
  const mapping = await Conversation.start(
    t,
    process.execPath,
    pcowProgram,
    'run',
    '--',
    tool,
    mount.file('vm1'),
  );
  t.is(await mapping.ask('write 0 1 1'), 'ok');

  const look = JSON.parse(await succeeds(t, pcow('top', mount.point, '--json'))) as Look;
  t.is(look.mountpoint, mount.point);
  const [vm1, vm2] = look.images;
  t.like(vm2, { name: 'vm2', state: 'ok', attached: [], snapshots: 1 });
  const [holder] = vm1?.attached ?? [];
  t.like(holder, { pid: mapping.pid, command: 'map-tool', writable: true });
  t.is(holder?.monitor?.faults.expansion.count, 1);
  t.is(holder?.monitor?.stalls, 0);

  const text = await succeeds(t, pcow('top', mount.images, '--once'));
  const [head = '', first = '', second = ''] = text.split('\n');
  t.regex(head, /^image +state +process +expand\/s .* snapshots$/);
  t.regex(
    first,
    new RegExp(
      `^vm1 +attached +${mapping.pid} map-tool( +\\d+){5} +\\d+ [µm]s +0 bytes +\\d+ KiB +0 bytes +0 bytes( +\\d+){3}$`,
    ),
  );
  t.regex(second, /^vm2 +idle +1$/);
});

test.serial('it continues until it is ended, or the mount ends', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const top = spawn(process.execPath, [pcowProgram, 'top', mount.point]);
  t.teardown(() => top.kill('SIGKILL'));
  let shown = '';
  let said = '';
  top.stdout.on('data', (text: Buffer) => (shown += String(text)));
  top.stderr.on('data', (text: Buffer) => (said += String(text)));
  while (shown.split('vm1').length <= 2) await once(top.stdout, 'data');
  const ended = once(top, 'close');
  await mount.kill();
  const [exit] = (await ended) as [number];
  t.is(exit, 11, said);
  t.regex(said, /the mount on \S+ has (ended|died)/);
});

test.serial('a directory that is not mounted', async (t) => {
  await fails(t, pcow('top', '/'), 11, /not mounted/);
});
