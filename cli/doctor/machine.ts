/** Checks the machine: kernel, FUSE, userfaultfd, memory, QEMU. */
import { execFile } from 'node:child_process';
import { constants } from 'node:fs';
import { access, readFile } from 'node:fs/promises';
import os from 'node:os';
import { promisify } from 'node:util';
import { isPcowError, PcowError } from '../../src/engine/index.js';
import { checkMonitor } from '../../src/engine/run.js';
import { checkFuse } from '../../src/mount/daemon/mountpoint.js';
import { monitorLibrary } from '../../src/client/monitored-command.js';
import { formatSize } from '../../src/images/sizes.js';
import { type Finding, ok, problem, warning } from './finding.js';
import { FILTER_MUST_ALLOW, isFiltered } from './system-call-filter.js';

const run = promisify(execFile);

/** The default of Linux; the monitor is tested with it. */
const DEFAULT_MAPPINGS = 65_530;

/** QEMU has virtio-pmem since this version. */
const OLDEST_QEMU = [4, 1];

export async function machineFindings(qemu: string): Promise<Finding[]> {
  return [
    kernel(),
    await fuse(),
    ...(await allowOther()),
    monitor(),
    ...(await userfaultfd()),
    await mappings(),
    await memory(),
    await kvm(),
    ...(await qemuFindings(qemu)),
  ];
}

function kernel(): Finding {
  const release = os.release();
  const [major = 0, minor = 0] = release.split('.').map(Number);
  if (os.arch() !== 'x64') {
    return warning(
      'kernel',
      `Linux ${release} on ${os.arch()}: Pcow is tested on x86-64 only`,
      null,
    );
  }
  // UFFDIO_WRITEPROTECT of anonymous memory.
  return major > 5 || (major === 5 && minor >= 7)
    ? ok('kernel', `Linux ${release}`)
    : problem(
        'kernel',
        `Linux ${release} has no write protection by userfaultfd`,
        'use Linux 5.7 or newer; 6.1 is tested',
      );
}

async function fuse(): Promise<Finding> {
  try {
    await checkFuse();
    return ok('fuse', '/dev/fuse and fusermount3 are there');
  } catch (error) {
    // The end of the sentence is the fix.
    const [message = '', mend = ''] = sentence(error).split(': ');
    return problem('fuse', message, mend);
  }
}

/** Root may always allow other users. */
async function allowOther(): Promise<Finding[]> {
  if (process.getuid?.() === 0) return [];
  const configuration = await readFile('/etc/fuse.conf', 'utf8').catch(() => '');
  return /^\s*user_allow_other\b/m.test(configuration)
    ? [ok('allow-other', 'all users may use --allow-other')]
    : [
        warning(
          'allow-other',
          '--allow-other is for root only',
          'add the line user_allow_other to /etc/fuse.conf',
        ),
      ];
}

function monitor(): Finding {
  try {
    return ok('monitor', `the monitor is ${monitorLibrary()}`);
  } catch (error) {
    const [message = '', mend = ''] = sentence(error).split(/: (.*)/s);
    return problem('monitor', message, mend);
  }
}

async function userfaultfd(): Promise<Finding[]> {
  try {
    const { canShare } = checkMonitor();
    return [ok('userfaultfd', 'guests can run under the monitor'), sharing(canShare)];
  } catch (error) {
    const message = `guests can't run under the monitor: ${sentence(error)}`;
    // A call that a filter forbids fails like one for which this user has no permission.
    if (isFiltered(await readFile('/proc/self/status', 'utf8')))
      return [problem('userfaultfd', message, FILTER_MUST_ALLOW)];
    const mend = isPcowError(error, 'PCOW_PERMISSION')
      ? 'sysctl vm.unprivileged_userfaultfd=1, or give /dev/userfaultfd to a group (docs/monitor.md)'
      : 'use pcow run --plain';
    return [problem('userfaultfd', message, mend)];
  }
}

/** UFFDIO_WRITEPROTECT of shared memory. */
function sharing(can: boolean): Finding {
  return can
    ? ok('sharing', 'guests of one base can share its memory (pcow mount --clean-store)')
    : warning(
        'sharing',
        "guests of one base can't share its memory: this kernel does not write-protect shared memory",
        'use Linux 5.19 or newer',
      );
}

async function mappings(): Promise<Finding> {
  const limit = Number(await readFile('/proc/sys/vm/max_map_count', 'utf8').catch(() => '0'));
  return limit >= DEFAULT_MAPPINGS
    ? ok(
        'mappings',
        `a process may have ${limit} memory mappings, of which the monitor uses three quarters at most`,
      )
    : warning(
        'mappings',
        `a process may have only ${limit} memory mappings: the monitor copies more data to need fewer mappings`,
        `sysctl vm.max_map_count=${DEFAULT_MAPPINGS}`,
      );
}

async function memory(): Promise<Finding> {
  const overcommit = (
    await readFile('/proc/sys/vm/overcommit_memory', 'utf8').catch(() => '0')
  ).trim();
  if (overcommit === '2') {
    return problem(
      'memory',
      'the kernel refuses to promise more memory than there is: an image is reserved whole when a guest maps it',
      'sysctl vm.overcommit_memory=0',
    );
  }
  const information = await readFile('/proc/meminfo', 'utf8');
  const available = Number(/^MemAvailable: +(\d+) kB/m.exec(information)?.[1] ?? 0) * 1024;
  return ok('memory', `${formatSize(available)} of ${formatSize(os.totalmem())} are available`);
}

async function kvm(): Promise<Finding> {
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK);
    return ok('kvm', '/dev/kvm is there');
  } catch (error) {
    const missing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
    return missing
      ? warning(
          'kvm',
          'there is no /dev/kvm: guests are emulated, which is slow',
          'modprobe kvm_intel or kvm_amd',
        )
      : warning(
          'kvm',
          'this user may not open /dev/kvm: guests are emulated, which is slow',
          'adduser USER kvm',
        );
  }
}

async function qemuFindings(qemu: string): Promise<Finding[]> {
  let version: string;
  try {
    version = /version (\d+(?:\.\d+)*)/.exec((await run(qemu, ['--version'])).stdout)?.[1] ?? '';
  } catch {
    return [warning('qemu', `${qemu} can't be run`, 'apt-get install qemu-system-x86')];
  }
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [oldMajor = 0, oldMinor = 0] = OLDEST_QEMU;
  if (major < oldMajor || (major === oldMajor && minor < oldMinor)) {
    return [
      problem(
        'qemu',
        `QEMU ${version} has no virtio-pmem`,
        `use QEMU ${OLDEST_QEMU.join('.')} or newer; 7.2 is tested`,
      ),
    ];
  }
  const { stdout } = await run(qemu, ['-device', 'help'], { maxBuffer: 1 << 24 }).catch(() => ({
    stdout: '',
  }));
  const missing = ['virtio-pmem-pci', 'nvdimm'].filter((device) => !stdout.includes(`"${device}"`));
  return missing.length === 0
    ? [ok('qemu', `QEMU ${version}, with virtio-pmem and nvdimm`)]
    : [
        problem(
          'qemu',
          `QEMU ${version} was built without ${missing.join(' and ')}`,
          'use a build that has it, as Debian’s',
        ),
      ];
}

function sentence(error: unknown): string {
  if (error instanceof PcowError) return error.message;
  throw error;
}
