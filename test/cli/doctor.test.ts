/**
 * `pcow doctor`: every mistake in a guest's description that it knows, in both kinds of
 * description.
 */
import { execFile } from 'node:child_process';
import { mkdir, readdir, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { guestOfCommandLine } from '../../cli/doctor/command-line.js';
import { guestFindings } from '../../cli/doctor/guest-findings.js';
import type { Guest } from '../../cli/doctor/guest.js';
import { guestOfDomain } from '../../cli/doctor/libvirt-domain.js';
import { imagesFor, mountedImages, MiB, type TestMount } from '../helpers/mount.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';
import { mountSmallDisk } from '../helpers/small-disk.js';
import { fails, pcowIn, succeeds } from './outcome.js';

const run = promisify(execFile);

/** The findings, without those of the level ok. */
async function found(guest: Guest): Promise<string[]> {
  const findings = await guestFindings(guest);
  return findings
    .filter(({ level }) => level !== 'ok')
    .map(({ level, check }) => `${level} ${check}`);
}

interface Description {
  share?: string;
  more?: string;
  size?: number;
  file: string;
  device?: string;
  m?: string;
  rest?: string[];
}

function commandLine({
  share = 'on',
  more = '',
  size = 128 * MiB,
  file,
  device,
  m,
  rest = [],
}: Description): Guest {
  return guestOfCommandLine([
    ...[
      'pcow',
      'run',
      '--',
      'qemu-system-x86_64',
      '-machine',
      'q35',
      '-m',
      m ?? '1G,slots=1,maxmem=4G',
    ],
    ...['-object', `memory-backend-file,id=p,mem-path=${file},size=${size},share=${share}${more}`],
    ...['-device', device ?? 'virtio-pmem-pci,memdev=p'],
    ...rest,
  ]);
}

test.serial('a QEMU command line: each mistake is found, and nothing else', async (t) => {
  const mount = await mountedImages(t, { vm1: 128 * MiB, odd: MiB, section: 130 * MiB });
  const file = mount.file('vm1');
  t.deepEqual(await found(commandLine({ file })), []);
  const mistakes: [Partial<Description>, ...string[]][] = [
    [{ share: 'off' }, 'problem share'],
    [{ more: ',discard-data=on' }, 'problem discard-data'],
    [{ more: ',prealloc=on' }, 'problem prealloc'],
    [{ rest: ['-mem-prealloc'] }, 'problem prealloc'],
    [{ more: ',pmem=on' }, 'problem pmem'],
    [{ more: ',readonly=on' }, 'problem readonly'],
    [{ more: ',readonly' }, 'problem readonly'],
    [{ more: ',readonly=off,offset=0' }],
    [{ more: ',offset=2M', size: 126 * MiB }, 'problem offset', 'warning size'],
    [{ more: ',offset=2M' }, 'problem offset', 'problem size'],
    [{ share: 'off', more: ',readonly=on,rom=off' }, 'problem share', 'problem readonly'],
    [{ rest: ['-machine', 'memory-backend=p'] }, 'problem ordinary-memory'],
    [{ device: 'pc-dimm,memdev=p' }, 'problem ordinary-memory'],
    [{ rest: ['-numa', 'node,nodeid=0,memdev=p'] }, 'problem ordinary-memory'],
    [{ rest: ['-snapshot'] }, 'warning snapshot-option'],
    [{ file: mount.point }, 'problem path'],
    [
      {
        rest: [
          '-object',
          'memory-backend-ram,id=r,size=128M',
          '-device',
          'virtio-pmem-pci,memdev=r',
        ],
      },
      'problem volatile',
    ],
    [
      {
        device: 'nvdimm,memdev=p,unarmed=on',
        rest: ['-machine', 'nvdimm=on,nvdimm-persistence=cpu'],
      },
      'warning unarmed',
      'problem persistence',
    ],
    [
      { device: 'nvdimm,memdev=p,label-size=128K', rest: ['-machine', 'nvdimm=on'] },
      'warning nvdimm',
      'warning labels',
    ],
    [{ size: 256 * MiB }, 'problem size'],
    [{ size: 126 * MiB }, 'warning size', 'warning size'],
    [{ file: mount.file('odd'), size: MiB }, 'problem size'],
    [{ file: mount.file('section'), size: 130 * MiB }, 'warning size'],
    [{ m: '1G' }, 'problem maxmem'],
    [{ m: '1G,slots=1,maxmem=1G' }, 'problem maxmem'],
    [{ m: '1G,slots=1,maxmem=4T' }, 'problem address-bits'],
    [{ m: '1G,slots=1,maxmem=4T', rest: ['-cpu', 'max,phys-bits=44'] }],
    [{ m: '1G,slots=1,maxmem=4T', rest: ['-cpu', 'host'] }],
    [{ device: 'virtio-pmem-pci,memdev=other' }, 'problem device'],
    [{ device: 'nvdimm,memdev=p', rest: ['-machine', 'nvdimm=on'] }, 'warning nvdimm'],
    [{ device: 'nvdimm,memdev=p,unarmed=on' }, 'warning unarmed', 'problem nvdimm-machine'],
    [
      { device: 'nvdimm,memdev=p,unarmed=on', m: '1G,maxmem=4G', rest: ['-M', 'nvdimm=on'] },
      'warning unarmed',
      'problem slots',
    ],
    [
      { device: 'nvdimm,memdev=p', rest: ['-M', 'nvdimm=on', '-no-acpi'] },
      'warning nvdimm',
      'problem acpi',
    ],
    [
      { device: 'nvdimm,memdev=p', rest: ['-M', 'nvdimm=on,acpi=off'] },
      'warning nvdimm',
      'problem acpi',
    ],
    [{ rest: ['-M', 'acpi=off'] }, 'problem acpi'],
    [{ rest: ['-sandbox', 'on,spawn=deny'] }],
    [{ rest: ['-overcommit', 'mem-lock=on'] }, 'problem locked'],
    [{ rest: ['-netdev', 'vhost-user,id=n,chardev=c'] }, 'problem vhost-user'],
    [{ rest: ['-device', 'vhost-user-fs-pci,chardev=c'] }, 'problem vhost-user'],
    [{ rest: ['-device', 'vfio-pci,host=01:00.0'] }, 'problem vfio'],
    [
      {
        rest: [
          '-object',
          `memory-backend-file,id=q,mem-path=${file},share=on`,
          '-device',
          'virtio-pmem-pci,memdev=q',
        ],
      },
      'problem twice',
    ],
    [{ rest: ['-readconfig', 'more.cfg'] }, 'warning unseen'],
    [{ file: mount.image('vm1') }, 'problem path'],
    [{ file: '/none' }, 'problem path'],
    [{ file: '/etc/passwd' }, 'problem path'],
  ];
  for (const [mistake, ...wanted] of mistakes) {
    t.deepEqual(await found(commandLine({ file, ...mistake })), wanted, JSON.stringify(mistake));
  }
  await mount.write('s', 'vm1', 'snapshot');
  t.deepEqual(await found(commandLine({ file: mount.control('vm1', 'at', 's') })), [
    'problem path',
  ]);
  t.deepEqual(await found(guestOfCommandLine(['qemu-system-x86_64', '-nographic', '-m', '1G'])), [
    'problem backend',
  ]);
  // As libvirt writes it; and without the monitor.
  const json = JSON.stringify({
    'qom-type': 'memory-backend-file',
    id: 'p',
    'mem-path': file,
    share: true,
    size: 128 * MiB,
  });
  const device = JSON.stringify({ driver: 'virtio-pmem-pci', memdev: 'p' });
  const words = [
    'qemu-system-x86_64',
    '-m',
    'size=1048576k,maxmem=4G',
    '-object',
    json,
    '-device',
    device,
  ];
  t.deepEqual(await found(guestOfCommandLine(words)), ['warning monitored']);
});

test.serial('an image that is attached already', async (t) => {
  const mount = await mountedImages(t, { vm1: 128 * MiB });
  const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
  await attachedTo(mount, 'vm1', tool.pid);
  t.deepEqual(await found(commandLine({ file: mount.file('vm1') })), ['problem attached']);
});

function domain(mount: TestMount, changes: [from: string | RegExp, to: string][] = []): Guest {
  let xml = `<domain type='kvm'>
    <memory unit='KiB'>1048576</memory>
    <maxMemory slots='1' unit='GiB'>4</maxMemory>
    <memoryBacking></memoryBacking>
    <features><acpi/><apic/></features>
    <cpu mode='host-passthrough'><numa><cell id='0' cpus='0' memory='1' unit='GiB'/></numa></cpu>
    <devices>
      <memory model='nvdimm' access='shared'>
        <source><path>${mount.file('vm1')}</path></source>
        <target><size unit='MiB'>128</size><node>0</node></target>
      </memory>
    </devices>
    <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <qemu:env name='LD_PRELOAD' value='/usr/lib/pcow/native/build/Release/libpcow-monitor.so'/>
    </qemu:commandline>
  </domain>`;
  for (const [from, to] of changes) xml = xml.replace(from, to);
  return guestOfDomain(xml, 'vm1.xml');
}

test.serial('a libvirt domain: the same mistakes', async (t) => {
  const mount = await mountedImages(t, { vm1: 128 * MiB });
  const always = ['problem prealloc', 'warning nvdimm'];
  t.deepEqual(await found(domain(mount)), always);
  const mistakes: [from: string | RegExp, to: string, ...wanted: string[]][] = [
    [" access='shared'", '', 'problem share', ...always],
    [
      "access='shared'",
      "access='shared' discard='yes'",
      'problem prealloc',
      'problem discard-data',
      'warning nvdimm',
    ],
    ['<memoryBacking>', '<memoryBacking><discard/>', 'problem discard-data', ...always],
    ['<memoryBacking>', '<memoryBacking><locked/>', ...always, 'problem locked'],
    ['<source>', '<source><pmem/>', 'problem prealloc', 'problem pmem', 'warning nvdimm'],
    [/<maxMemory.*<\/maxMemory>/, '', ...always, 'problem maxmem', 'problem slots'],
    ['<node>0</node>', '<node>0</node><readonly/>', 'problem prealloc', 'warning unarmed'],
    [
      '<node>0</node>',
      "<node>0</node><label><size unit='KiB'>256</size></label>",
      ...always,
      'warning labels',
    ],
    [
      "<size unit='MiB'>128",
      "<size unit='GiB'>1",
      'problem prealloc',
      'problem size',
      'warning nvdimm',
    ],
    ['<acpi/>', '', ...always, 'problem acpi'],
    [/<features>.*<\/features>/, '', ...always, 'problem acpi'],
    ['<devices>', "<devices><interface type='vhostuser'/>", ...always, 'problem vhost-user'],
    [
      '<devices>',
      "<devices><filesystem><driver type='virtiofs'/></filesystem>",
      ...always,
      'problem vhost-user',
    ],
    ['<devices>', "<devices><hostdev type='pci'/>", ...always, 'problem vfio'],
    ['LD_PRELOAD', 'OTHER', ...always, 'warning monitored'],
    ["model='nvdimm'", "model='virtio-pmem'", 'warning unseen'],
  ];
  for (const [from, to, ...wanted] of mistakes) {
    t.deepEqual((await found(domain(mount, [[from, to]]))).sort(), [...wanted].sort(), to);
  }
  t.throws(() => domain(mount, [['</domain>', '']]), { message: /"vm1\.xml" is not XML/ });
  t.throws(() => guestOfDomain('<network/>', 'net.xml'), { message: /no <domain>/ });
});

test.serial('the doctor finds no fault in what pcow prints for QEMU and for libvirt', async (t) => {
  const mount = await mountedImages(t, { vm1: 128 * MiB, vm2: 256 * MiB, 'r&d': 128 * MiB });
  const pcow = pcowIn(mount.scratch);
  const args = (await succeeds(t, pcow('qemu-args', 'mnt/vm1', 'mnt/vm2'))).trim().split(/\s+/);
  t.deepEqual(
    await found(guestOfCommandLine(['pcow', 'run', '--', 'qemu-system-x86_64', ...args])),
    [],
  );
  const elements = await succeeds(t, pcow('libvirt-xml', 'mnt/vm1', 'mnt/r&d'));
  await writeFile(
    path.join(mount.scratch, 'vm.xml'),
    `<domain type='kvm'><name>vm</name><features><acpi/></features>${elements}</domain>`,
  );
  // If libvirt is installed, its user may not enter this mount, which is a separate finding.
  const { stdout } = await pcow('doctor', '--json', '--libvirt', 'vm.xml');
  const { findings } = JSON.parse(stdout) as {
    findings: { subject: string; check: string; level: string; mend: string | null }[];
  };
  t.deepEqual(
    [...new Set(findings.map(({ subject }) => subject))],
    ['machine', 'guest', 'libvirt'],
  );
  t.deepEqual(
    findings.filter(({ subject, level }) => subject === 'guest' && level !== 'ok'),
    [],
  );
  t.true(
    findings.every(({ level, mend }) => level !== 'problem' || (mend !== null && mend !== '')),
  );
});

test.serial('a directory is checked, and left unchanged', async (t) => {
  const { images, scratch } = await imagesFor(t, { vm1: MiB });
  await writeFile(path.join(images, 'text.pcow'), 'not an image');
  const pcow = pcowIn(scratch);
  const { exit, stdout } = await pcow('doctor', 'images');
  t.is(exit, 12);
  t.regex(stdout, /problem +"text\.pcow" can't be opened/);
  t.regex(stdout, /1 of 2 images can be opened/);
  t.regex(stdout, /ok +files are sparse/);
  t.deepEqual((await readdir(images)).sort(), ['text.pcow', 'vm1.pcow']);
});

test.serial('a full disk, and a disk that a reboot erases', async (t) => {
  const { images, scratch } = await imagesFor(t, {});
  await mkdir(path.join(scratch, 'memory'));
  await run('mount', ['-t', 'tmpfs', '-o', 'size=64M', 'none', path.join(scratch, 'memory')]);
  t.teardown(() => run('umount', ['-l', path.join(scratch, 'memory')]));
  await mountSmallDisk(t, images, 24 * MiB);
  await run('bash', ['-c', `cat /dev/zero > ${images}/filler || true`]);
  const pcow = pcowIn(scratch);
  const full = await pcow('doctor', 'images');
  t.is(full.exit, 12);
  t.regex(full.stdout, /warning .* are free: guests are paused when the disk is full/);
  t.regex(full.stdout, /problem +an image can't be made/);
  t.regex((await pcow('doctor', 'memory')).stdout, /warning +the images are on tmpfs/);
});

test.serial('a filesystem that needs new space for every overwrite', async (t) => {
  const { images, scratch } = await imagesFor(t, {});
  const disk = path.join(scratch, 'disk');
  await writeFile(disk, '');
  await truncate(disk, 160 * MiB);
  await run('mkfs.btrfs', ['-q', disk], {
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` },
  });
  await run('mount', ['-o', 'loop', disk, images]);
  t.teardown(() => run('umount', ['-l', images]));
  const pcow = pcowIn(scratch);
  t.regex(
    (await pcow('doctor', 'images')).stdout,
    /warning +btrfs needs new space for every overwrite: .*SIGBUS/,
  );
  t.regex(
    (await pcow('create', 'images/vm1', '1G')).stderr,
    /warning: btrfs needs new space for every overwrite/,
  );
});

test('mistakes in its own command line', async (t) => {
  const pcow = pcowIn('/');
  await fails(t, pcow('doctor', '/none'), 4, /no directory "\/none"/);
  await fails(t, pcow('doctor', '/tmp', 'more'), 2, /unexpected argument "more"/);
  await fails(t, pcow('doctor', '--libvirt', '/none'), 4, /"\/none" can't be read/);
  await fails(t, pcow('doctor', '--', '-m', '1G'), 2, /begins with the program/);
  await fails(t, pcow('doctor', '--libvirt', '/none', '--', 'qemu'), 2, /not by both/);
});
