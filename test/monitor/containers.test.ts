/** A guest in a container: a user, mount and PID namespace of its own, as container engines make them, with the mount on the host. */
import { readFile } from 'node:fs/promises';

import test from 'ava';

import { mountedImages, MiB } from '../helpers/mount.js';
import { attachedStatus, attachedTo, monitorPrefix } from '../helpers/monitored.js';
import { Conversation, program } from '../helpers/program.js';

const NAMESPACES = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];

for (const [what, words] of [
  ['of root', []],
  ['of a user namespace', ['--user', '--map-root-user']],
] as const) {
  test.serial(
    `a program in the namespaces of a container ${what} maps a flat file: snapshots, names, its end`,
    async (t) => {
      const mount = await mountedImages(t, { vm1: 4 * MiB });
      const tool = await program('map-tool', mount.scratch);
      const inside = [...words, ...NAMESPACES, ...monitorPrefix(), tool, mount.file('vm1')];
      const guest = await Conversation.start(t, 'unshare', ...inside);
      const { attached } = await attachedStatus(mount, 'vm1');
      t.is(attached?.command, 'map-tool');
      // Its number is that of the host, not the 1 that it has inside.
      t.is((await readFile(`/proc/${attached?.pid ?? 0}/comm`, 'utf8')).trim(), 'map-tool');
      t.is(await guest.ask('write 70000 10 1'), 'ok');
      await mount.write('one', 'vm1', 'snapshot');
      t.is(await guest.ask('write 70000 10 2'), 'ok');
      t.is((await readFile(mount.control('vm1', 'at', 'one')))[70_000], 1);
      t.is((await readFile(mount.file('vm1')))[70_000], 2);
      await guest.end();
      await attachedTo(mount, 'vm1', null);
      t.is((await readFile(mount.file('vm1')))[70_000], 2);
    },
  );
}
