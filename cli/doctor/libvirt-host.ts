/**
 * Whether a libvirt guest may use what it needs. This is checked for libvirt's user, in libvirt's
 * confinement, and not for the user who asks.
 */
import { execFile } from 'node:child_process';
import { readFile, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import { processes } from '../../src/engine/processes.js';
import { mountHolding, mountTable } from '../../src/images/mount-table.js';
import { word } from '../../src/engine/quote.js';
import { type Finding, ok, problem, warning } from './finding.js';
import { FILTER_MUST_ALLOW, isFiltered } from './system-call-filter.js';

const run = promisify(execFile);

const EXAMPLES = '/usr/share/doc/pcow/examples';
const DEVICE = '/dev/userfaultfd';
/** The names in Debian and in Fedora. */
const USERS = ['libvirt-qemu', 'qemu'];

/** The user as whom QEMU runs. */
export interface QemuUser {
  name: string;
  uid: number;
  /** The primary group and the others. */
  gids: number[];
}

/** The properties of the machine that matter to libvirt's guests. */
export interface LibvirtHost {
  /** null: there is no such user, so libvirt is not installed. */
  user: QemuUser | null;
  /** The text of qemu.conf; empty if there is none. */
  configuration: string;
  /** Mode and owner; null: this kernel has no such device. */
  device: Access | null;
  /** vm.unprivileged_userfaultfd. */
  everybody: boolean;
  /** The rules that AppArmor adds for QEMU; null: AppArmor is off. */
  appArmor: string | null;
  /** SELinux is enforced. */
  seLinux: boolean;
  /** Daemons of libvirt that run under a filter of system calls, which their guests inherit. */
  filtered: string[];
}

/** As in stat(2). */
export interface Access {
  mode: number;
  uid: number;
  gid: number;
}

export async function libvirtHost(): Promise<LibvirtHost> {
  const read = (file: string) => readFile(file, 'utf8').catch(() => '');
  const configuration = await read('/etc/libvirt/qemu.conf');
  const names = [settingOf(configuration, 'user')?.replace(/^\+/, '') ?? [], USERS].flat();
  return {
    user: await firstUser(names),
    configuration,
    device: await stat(DEVICE).catch(() => null),
    everybody: (await read('/proc/sys/vm/unprivileged_userfaultfd')).trim() === '1',
    appArmor:
      (await read('/sys/module/apparmor/parameters/enabled')).trim() === 'Y'
        ? (await read('/etc/apparmor.d/abstractions/libvirt-qemu')) +
          (await read('/etc/apparmor.d/local/abstractions/libvirt-qemu'))
        : null,
    seLinux: (await read('/sys/fs/selinux/enforce')).trim() === '1',
    filtered: await filteredDaemons(),
  };
}

async function filteredDaemons(): Promise<string[]> {
  const found = new Set<string>();
  for (const pid of await processes()) {
    const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
    const [, name] = /^Name:\s+(libvirtd|virtqemud)$/m.exec(status) ?? [];
    if (name !== undefined && isFiltered(status)) found.add(name);
  }
  return [...found];
}

async function firstUser(names: string[]): Promise<QemuUser | null> {
  for (const name of names) {
    const ids = (option: string) =>
      run('id', [option, '--', name]).then(({ stdout }) => stdout.trim().split(' ').map(Number));
    try {
      const [[uid = NaN], gids] = await Promise.all([ids('-u'), ids('-G')]);
      return { name, uid, gids };
    } catch {
      // There is no such user.
    }
  }
  return null;
}

/** `files`: the guest's memory. `monitored`: whether it runs under the monitor. */
export async function libvirtFindings(
  host: LibvirtHost,
  files: string[],
  monitored: boolean,
): Promise<Finding[]> {
  const { user } = host;
  if (user === null) {
    return [
      warning(
        'libvirt-user',
        `there is no user ${USERS.join(' or ')}: libvirt is not installed here`,
        null,
      ),
    ];
  }
  const images: Finding[] = [];
  for (const file of files) images.push(await imageFinding(file, user));
  return [
    ok('libvirt-user', `QEMU runs as ${user.name}`),
    ...(monitored ? [device(host, user), deviceList(host)] : []),
    ...images,
    ...confinement(host, monitored),
    ...(monitored ? filters(host) : []),
  ];
}

/** `name = "value"` in a file of libvirt, outside of comments. */
function settingOf(configuration: string, name: string): string | undefined {
  return new RegExp(`^\\s*${name}\\s*=\\s*"?([^"\\n]*)"?\\s*$`, 'm')
    .exec(configuration)?.[1]
    ?.trim();
}

function may({ uid, gids }: QemuUser, access: Access, wanted: number): boolean {
  if (uid === 0) return true;
  const shift = uid === access.uid ? 6 : gids.includes(access.gid) ? 3 : 0;
  return ((access.mode >> shift) & wanted) === wanted;
}

function device({ device: found, everybody }: LibvirtHost, user: QemuUser): Finding {
  if (everybody || (found !== null && may(user, found, 0o6))) {
    return ok('libvirt-userfaultfd', `${user.name} may use userfaultfd`);
  }
  return problem(
    'libvirt-userfaultfd',
    `${user.name} may not use ${DEVICE}, so its guests can't run under the monitor`,
    `cp ${EXAMPLES}/60-pcow.rules /etc/udev/rules.d/ && udevadm control --reload && udevadm trigger ${DEVICE} (${user.name} has to be in the group kvm)`,
  );
}

function deviceList({ configuration, everybody }: LibvirtHost): Finding {
  const list = /^\s*cgroup_device_acl\s*=\s*\[([^\]]*)\]/m.exec(configuration)?.[1];
  if (everybody || list?.replace(/#.*$/gm, '').includes(`"${DEVICE}"`) === true) {
    return ok('libvirt-devices', `libvirt lets its guests’ QEMU have ${DEVICE}`);
  }
  return problem(
    'libvirt-devices',
    `libvirt gives its guests’ QEMU a /dev of its own, without ${DEVICE}`,
    `cgroup_device_acl in /etc/libvirt/qemu.conf, as in ${EXAMPLES}/qemu.conf; then restart libvirtd`,
  );
}

async function imageFinding(file: string, user: QemuUser): Promise<Finding> {
  const check = 'libvirt-image';
  let real: string;
  let access: Access;
  try {
    real = await realpath(file);
    access = await stat(real);
  } catch {
    return problem(check, `${file} does not exist`, 'pcow mount DIR MOUNTPOINT --allow-other');
  }
  const held = await mountHolding(real);
  if (real.startsWith('/dev/')) {
    return problem(
      check,
      `${file} is below /dev, of which libvirt’s guests have their own`,
      'mount the images elsewhere',
    );
  }
  if (held !== null) {
    const options =
      (await mountTable()).findLast(({ mountpoint }) => mountpoint === held.mount.mountpoint)
        ?.options ?? [];
    if (!options.includes('allow_other') && !options.includes(`user_id=${user.uid}`)) {
      const { directory, mountpoint } = held.mount;
      return problem(
        check,
        `${user.name} may not look into ${mountpoint}: it is mounted for one user only`,
        `pcow umount ${word(mountpoint)} && pcow mount ${word(directory)} ${word(mountpoint)} --allow-other`,
      );
    }
  }
  for (let place = path.dirname(real); ; place = path.dirname(place)) {
    if (!may(user, await stat(place), 0o1)) {
      return problem(check, `${user.name} may not enter ${place}`, `chmod o+x ${word(place)}`);
    }
    if (place === '/') break;
  }
  if (!may(user, access, 0o6)) {
    return problem(
      check,
      `${user.name} may not read and write ${file}`,
      `chgrp ${word(user.name)} ${word(file)} && chmod g+rw ${word(file)} (through the mount that changes the image file)`,
    );
  }
  return ok(check, `${user.name} may read and write ${file}`);
}

/**
 * QEMU's own filter, which libvirt asks for (seccomp_sandbox), lets the monitor work:
 * test/monitor/qemu-ways.test.ts.
 */
function filters({ filtered }: LibvirtHost): Finding[] {
  return filtered.map((daemon) =>
    warning(
      'libvirt-filter',
      `${daemon} runs under a filter of system calls, and so do its guests`,
      `${FILTER_MUST_ALLOW} (SystemCallFilter= of its unit)`,
    ),
  );
}

function confinement(
  { configuration, appArmor, seLinux }: LibvirtHost,
  monitored: boolean,
): Finding[] {
  if (settingOf(configuration, 'security_driver') === 'none')
    return [ok('libvirt-confinement', 'guests are not confined')];
  const findings: Finding[] = [];
  if (appArmor !== null) {
    const missing = [...(monitored ? [DEVICE, 'libpcow-monitor.so'] : [])].filter(
      (it) => !appArmor.includes(it),
    );
    findings.push(
      missing.length === 0
        ? ok(
            'libvirt-apparmor',
            'AppArmor lets QEMU use the monitor; the log of AppArmor shows whether QEMU may use the images',
          )
        : problem(
            'libvirt-apparmor',
            `AppArmor keeps libvirt’s guests from ${missing.join(' and ')}`,
            `cat ${EXAMPLES}/apparmor-libvirt-qemu >> /etc/apparmor.d/local/abstractions/libvirt-qemu, with your own places in it`,
          ),
    );
  }
  if (seLinux) {
    findings.push(
      warning(
        'libvirt-selinux',
        'SELinux confines libvirt’s guests: files of FUSE need a boolean',
        'setsebool -P virt_use_fusefs on',
      ),
    );
  }
  return findings;
}
