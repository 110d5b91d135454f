/** `pcow run`: the command replaces pcow, with the monitor in its environment. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { imagesFor, mountedImages, MiB } from '../helpers/mount.js';
import { leaveOtherMounts } from '../helpers/mount-namespace.js';
import { pcowProgram } from '../helpers/mounted.js';
import { Conversation, program } from '../helpers/program.js';
import { fails, pcowIn, succeeds, type Outcome } from './outcome.js';

const MONITOR = fileURLToPath(
  new URL('../../../native/build/Release/libpcow-monitor.so', import.meta.url),
);
const pcow = pcowIn('/');

/** A shell script, with these variables added to the environment. */
function shell(script: string, variables: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(
      'bash',
      ['-c', script],
      { env: { ...process.env, ...variables } },
      (error, stdout, stderr) => {
        resolve({ exit: error === null ? 0 : Number(error.code), stdout, stderr });
      },
    );
  });
}

const RUN = `'${process.execPath}' '${pcowProgram}' run`;

test('the environment of the command preloads the monitor once, before other libraries', async (t) => {
  const words = ['--clean-cache', '1.5G', '--log', 'monitor.log', '--', 'sh', '-c'];
  const show = 'echo $LD_PRELOAD $PCOW_CLEAN_CACHE $PCOW_MONITOR_LOG';
  t.is(
    await succeeds(t, pcow('run', ...words, show)),
    `${MONITOR} ${1.5 * 2 ** 30} /monitor.log\n`,
  );
  const preload = { LD_PRELOAD: `libm.so.6 ${MONITOR}` };
  t.is(
    (await shell(`${RUN} -- sh -c 'echo $LD_PRELOAD'`, preload)).stdout,
    `${MONITOR}:libm.so.6\n`,
  );
  t.is((await shell(`${RUN} --plain -- sh -c 'echo $LD_PRELOAD'`, preload)).stdout, 'libm.so.6\n');
});

test('--print-env prints exports for a shell', async (t) => {
  const show = 'echo $LD_PRELOAD $PCOW_CLEAN_CACHE "$PCOW_MONITOR_LOG"';
  const evaluate = (options: string) =>
    `cd / && eval "$(${RUN} --print-env ${options})" && ${show}`;
  t.is((await shell(evaluate(''), { LD_PRELOAD: '' })).stdout, `${MONITOR} \n`);
  const { stdout } = await shell(evaluate(`--clean-cache 64M --log "it's a log"`), {
    LD_PRELOAD: 'libm.so.6',
  });
  t.is(stdout, `${MONITOR}:libm.so.6 ${64 * MiB} /it's a log\n`);
  await fails(t, pcow('run', '--print-env', '--', 'true'), 2, /omit the command/);
});

test('the exit code is the command’s, and its arguments are passed on unchanged', async (t) => {
  t.like(await pcow('run', '--', 'sh', '-c', 'echo out; echo err >&2; exit 42'), {
    exit: 42,
    stdout: 'out\n',
    stderr: 'err\n',
  });
  t.is(
    await succeeds(t, pcow('run', 'printf', '%s.', '--plain', '--', '-x', '')),
    '--plain.--.-x..',
  );
});

test('the process is the command’s: signals reach it, and can kill it', async (t) => {
  const child = spawn(process.execPath, [
    pcowProgram,
    'run',
    '--',
    'sh',
    '-c',
    'echo $$; exec sleep 60',
  ]);
  t.teardown(() => child.kill('SIGKILL'));
  const [pid] = (await once(child.stdout, 'data')) as [Buffer];
  t.is(String(pid).trim(), String(child.pid));
  child.kill('SIGTERM');
  const [exit, signal] = (await once(child, 'exit')) as [number | null, string | null];
  t.is(exit, null);
  t.is(signal, 'SIGTERM');

  // Node ignores SIGPIPE; the command must not inherit that.
  t.is((await shell(`${RUN} -- yes | head -1; echo \${PIPESTATUS[0]}`)).stdout, 'y\n141\n');
});

test('the error names a command that cannot be run', async (t) => {
  await fails(t, pcow('run', '--', 'no-such-command'), 4, /can't run no-such-command/, /PATH/);
  await fails(t, pcow('run', '--', '/etc/passwd'), 7, /can't run \/etc\/passwd/);
  await fails(t, pcow('run'), 2, /the command to run is missing/);
  await fails(
    t,
    pcow('run', '--clean-cache', 'much', '--', 'true'),
    3,
    /"much" is not a size of the clean cache/,
  );
  await fails(
    t,
    pcow('run', '--plain', '--log', 'x', '--', 'true'),
    2,
    /--plain runs without the monitor/,
  );
});

test('without the right to userfaultfd it refuses, and says how to get it; --plain runs', async (t) => {
  const device = await stat('/dev/userfaultfd').catch(() => null);
  const everybody =
    (await readFile('/proc/sys/vm/unprivileged_userfaultfd', 'utf8')).trim() === '1';
  const granted = everybody || ((device?.mode ?? 0) & 0o006) === 0o006;
  const nobody = 'setpriv --reuid 65534 --regid 65534 --clear-groups';
  const refused = await shell(`${nobody} ${RUN} -- echo ran`);
  t.is(refused.exit, granted ? 0 : 7, refused.stderr);
  t.is(refused.stdout, granted ? 'ran\n' : '');
  if (!granted)
    t.regex(
      refused.stderr,
      /chgrp kvm \/dev\/userfaultfd && chmod 660 \/dev\/userfaultfd.*\n.*pcow run --plain/,
    );

  const plain = await shell(`${nobody} ${RUN} --plain -- echo ran`);
  t.like(plain, { exit: 0, stdout: 'ran\n' });
  t.regex(plain.stderr, /warning: without the monitor/);
});

test.serial('a mapping under it is attached, and --log records that', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB });
  const tool = await program('map-tool', mount.scratch);
  const log = path.join(mount.scratch, 'log');
  const words = [pcowProgram, 'run', '--log', log, '--', tool, mount.file('vm1')];
  const mapping = await Conversation.start(t, process.execPath, ...words);
  t.is(await mapping.ask('write 4096 10 7'), 'ok');
  const { attached } = (await mount.status('vm1')) as unknown as {
    attached: { pid: number; command: string } | null;
  };
  t.like(attached, { pid: mapping.pid, command: 'map-tool' });
  t.regex(await readFile(log, 'utf8'), /attached \S+vm1\.pcow for writing/);
  await mapping.end();
  t.is((await readFile(mount.file('vm1')))[4096], 7);
});

test('if the mount cannot make a socket, it warns, and nothing is silently mapped without the monitor', async (t) => {
  const mount = await imagesFor(t, { vm1: MiB });
  const tool = await program('map-tool', mount.scratch);
  const command = `'${process.execPath}' '${pcowProgram}'`;
  const script = `
    ${leaveOtherMounts()}
    mount -t tmpfs -o ro none /run
    ${command} mount '${mount.images}' '${mount.point}' || exit
    ${command} run -- '${tool}' '${mount.file('vm1')}' < /dev/null; echo "run: $?"
    ${command} run --plain -- '${tool}' '${mount.file('vm1')}' < /dev/null; echo "plain: $?"
    ${command} doctor '${mount.images}' | grep 'no process can attach'
    ${command} umount '${mount.point}'`;
  const { exit, stdout, stderr } = await shell(
    `unset XDG_RUNTIME_DIR; unshare -m bash -c "$SCRIPT"`,
    {
      SCRIPT: script,
    },
  );
  t.is(exit, 0, stderr);
  t.regex(
    stderr,
    /^pcow: warning: no process can attach to the images of .*: set XDG_RUNTIME_DIR .* only with “pcow run --plain”$/m,
  );
  t.regex(stderr, /^pcow: cannot map a flat file: its mount serves no monitors/m);
  t.regex(stderr, /^mmap: No such device$/m);
  t.regex(stdout, /^run: 1$[^]*^mapped$[^]*^plain: 0$[^]*no process can attach/m);
});
