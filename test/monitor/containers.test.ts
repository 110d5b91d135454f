/**
 * A guest in a container: its own user, mount and PID namespaces, as container engines make them,
 * with the mount on the host.
 */
import { execFile, type ExecFileException } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { promisify } from 'node:util';

import test from 'ava';

import { mountedImages, MiB } from '../helpers/mount.js';
import { attachedStatus, attachedTo, monitorPrefix } from '../helpers/monitored.js';
import { inMountNamespace } from '../helpers/mount-namespace.js';
import { pcowProgram } from '../helpers/mounted.js';
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
      const inside = inMountNamespace([...monitorPrefix(), tool, mount.file('vm1')], {
        kept: mount.point,
        options: [...words, ...NAMESPACES],
      });
      const guest = await Conversation.start(t, ...inside);
      const { attached } = await attachedStatus(mount, 'vm1');
      t.is(attached?.command, 'map-tool');
      // Its pid is that of the host, not the 1 that it has inside.
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

/**
 * Runs a command under a filter (seccomp(2), on x86-64) like those of container engines:
 * pidfd_getfd(2) fails with EPERM.
 */
const FILTERED = `
import ctypes, os, struct, sys
number, pidfd_getfd = 0x20, 438
load = struct.pack('HBBI', number, 0, 0, 0)
compare = struct.pack('HBBI', 0x15, 0, 1, pidfd_getfd)
refuse, allow = struct.pack('HBBI', 6, 0, 0, 0x50001), struct.pack('HBBI', 6, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(load + compare + refuse + allow)
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(code)))): sys.exit('no filter')
os.execvp(sys.argv[1], sys.argv[1:])
`;

test.serial(
  'if a filter keeps the monitor from the descriptor of a flat file, it says so',
  async (t) => {
    const mount = await mountedImages(t, { vm1: MiB });
    const tool = await program('map-tool', mount.scratch);
    const words = ['-c', FILTERED, ...monitorPrefix(), tool, mount.file('vm1')];
    const error = await t.throwsAsync(promisify(execFile)('python3', words));
    t.regex(
      (error as ExecFileException).stderr ?? '',
      /the monitor may not borrow descriptors of this process: .*pidfd_getfd/,
    );

    // As pcow run and pcow doctor tell it before.
    const under = (...rest: string[]) =>
      promisify(execFile)('python3', [
        '-c',
        FILTERED,
        process.execPath,
        pcowProgram,
        ...rest,
      ]).catch((failure: ExecFileException) => failure);
    const started = (await under('run', '--', 'true')) as ExecFileException;
    t.is(started.code, 7);
    t.regex(started.stderr ?? '', /could not borrow descriptors of its process: .*pidfd_getfd/);
    const { findings } = JSON.parse((await under('doctor', '--json')).stdout ?? '') as {
      findings: { check: string }[];
    };
    t.like(
      findings.find(({ check }) => check === 'userfaultfd'),
      {
        level: 'problem',
        mend: 'the filter of system calls here, as of a container, must allow userfaultfd, pidfd_open and pidfd_getfd',
      },
    );
  },
);
