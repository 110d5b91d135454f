/**
 * `pcow doctor --libvirt` as libvirt's user, and `pcow libvirt-xml --into`, which prints a complete
 * domain.
 */
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { libvirtFindings, type LibvirtHost } from '../../cli/doctor/libvirt-host.js';
import { guestOfDomain } from '../../cli/doctor/libvirt-domain.js';
import { intoDomain } from '../../cli/into-domain.js';
import { scratchDirectory } from '../helpers/scratch.js';

const USER = { name: 'libvirt-qemu', uid: 64055, gids: [64055, 104] };
const DEVICE = { mode: 0o20660, uid: 0, gid: 104 };
const DEVICES = 'cgroup_device_acl = [\n  "/dev/null", # "/dev/kvm"\n  "/dev/userfaultfd"\n]\n';
const GOOD: LibvirtHost = {
  user: USER,
  configuration: DEVICES,
  device: DEVICE,
  everybody: false,
  appArmor: '/dev/userfaultfd rw,\n/usr/lib/pcow/native/build/Release/libpcow-monitor.so mr,\n',
  seLinux: false,
  filtered: [],
};

async function problems(
  host: Partial<LibvirtHost>,
  files: string[] = [],
  monitored = true,
): Promise<string[]> {
  const findings = await libvirtFindings({ ...GOOD, ...host }, files, monitored);
  return findings.filter(({ level }) => level !== 'ok').map(({ check }) => check);
}

test('the doctor finds what keeps libvirt’s user from using the monitor', async (t) => {
  t.deepEqual(await problems({}), []);
  t.deepEqual(await problems({ device: { mode: 0o20600, uid: 0, gid: 0 } }), [
    'libvirt-userfaultfd',
  ]);
  t.deepEqual(await problems({ device: null }), ['libvirt-userfaultfd']);
  t.deepEqual(await problems({ device: null, configuration: '', everybody: true }), []);
  t.deepEqual(await problems({ configuration: `#${DEVICES.replaceAll('\n', '\n#')}` }), [
    'libvirt-devices',
  ]);
  t.deepEqual(await problems({ configuration: DEVICES.replace('  "/dev/user', '# "/dev/user') }), [
    'libvirt-devices',
  ]);
  t.deepEqual(await problems({ appArmor: '/dev/kvm rw,' }), ['libvirt-apparmor']);
  t.deepEqual(
    await problems({ appArmor: '', configuration: `security_driver = "none"\n${DEVICES}` }),
    [],
  );
  t.deepEqual(await problems({ appArmor: null, seLinux: true }), ['libvirt-selinux']);
  t.deepEqual(await problems({ filtered: ['libvirtd'] }), ['libvirt-filter']);
  t.deepEqual(await problems({ user: null }), ['libvirt-user']);
  // Without the monitor none of this is required.
  t.deepEqual(
    await problems(
      { device: null, configuration: '', appArmor: '', filtered: ['virtqemud'] },
      [],
      false,
    ),
    [],
  );
});

test('the doctor finds an image that libvirt’s user may not use, and the fix', async (t) => {
  const directory = await scratchDirectory(t);
  await chmod(directory, 0o755);
  const file = path.join(directory, 'vm1');
  await writeFile(file, '');
  await chmod(file, 0o666);
  t.deepEqual(await problems({}, [file]), []);
  await chmod(file, 0o644);
  t.deepEqual(await problems({}, [file]), ['libvirt-image']);
  t.deepEqual(await problems({ user: { name: 'root', uid: 0, gids: [0] } }, [file]), []);
  const inner = path.join(directory, 'a b');
  await mkdir(inner);
  await writeFile(path.join(inner, 'vm1'), '');
  await chmod(path.join(inner, 'vm1'), 0o666);
  await chmod(inner, 0o700);
  const [finding] = (await libvirtFindings(GOOD, [path.join(inner, 'vm1')], false)).filter(
    (it) => it.level === 'problem',
  );
  t.like(finding, { message: `libvirt-qemu may not enter ${inner}`, mend: `chmod o+x '${inner}'` });
  t.deepEqual(await problems({}, [path.join(directory, 'none')]), ['libvirt-image']);
});

const DOMAIN = `<domain type='kvm' id='1'>
  <name>vm1 &amp; more</name>
  <!-- kept -->
  <memory unit='KiB'>2097152</memory>
  <vcpu placement='static'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>Skylake</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    <video><address type='pci' domain='0x0000' bus='0x00' slot='0x10' function='0x0'/></video>
  </devices>
</domain>`;
const IMAGES = [
  { file: '/mnt/vm1', size: 2 ** 30, id: 'pcow0' },
  { file: '/mnt/a&b', size: 2 ** 30, id: 'pcow1' },
];
const REQUEST = {
  images: IMAGES,
  device: 'virtio-pmem',
  unarmed: false,
  monitor: '/usr/lib/libpcow-monitor.so',
} as const;

test('a whole domain gets each image once, and keeps everything else', (t) => {
  const xml = intoDomain(DOMAIN, 'vm1.xml', REQUEST);
  const guest = guestOfDomain(xml, 'vm1.xml');
  t.like(guest, { memory: 2 ** 31, slots: 2, maxMemory: 2 ** 32, monitored: true });
  t.deepEqual(
    guest.backends.map((backend) => [backend.path, backend.size, backend.shared]),
    IMAGES.map(({ file, size }) => [file, size, true]),
  );
  t.is(guest.devices.length, 2);
  for (const kept of [
    'vm1 &amp; more',
    '<!-- kept -->',
    'mode="custom"',
    'Skylake',
    'pcie-root',
    'pc-q35-7.2',
  ]) {
    t.true(xml.includes(kept), `${kept}: ${xml}`);
  }
  t.regex(xml, /cpus="0-3" memory="2097152" unit="KiB"/);
  // A slot that another device uses is not taken.
  t.true(xml.includes('addr=0x11') && xml.includes('addr=0x12') && !xml.includes('addr=0x10'));
  t.is(intoDomain(xml, 'vm1.xml', REQUEST), xml);
  const one = intoDomain(xml, 'vm1.xml', { ...REQUEST, images: IMAGES.slice(0, 1), monitor: null });
  t.like(guestOfDomain(one, 'vm1.xml'), { slots: 1, maxMemory: 2 ** 31 + 2 ** 30 });
  t.false(one.includes('LD_PRELOAD'));
});

test('without KVM no processor is passed through, and other machines are refused', (t) => {
  const bare = DOMAIN.replace(/<cpu [^]*<\/cpu>/, '');
  t.true(intoDomain(bare, 'vm1.xml', REQUEST).includes('host-passthrough'));
  t.false(
    intoDomain(bare.replace("type='kvm'", "type='qemu'"), 'vm1.xml', REQUEST).includes(
      'host-passthrough',
    ),
  );
  t.throws(() => intoDomain(DOMAIN.replace('pc-q35-7.2', 'pc-i440fx-7.2'), 'vm1.xml', REQUEST), {
    message: /need a q35/,
  });
  for (const device of ['virtio-pmem', 'nvdimm'] as const) {
    t.throws(() => intoDomain(DOMAIN.replace('<acpi/>', ''), 'vm1.xml', { ...REQUEST, device }), {
      message: /no ACPI/,
    });
  }
  t.true(intoDomain(DOMAIN, 'vm1.xml', { ...REQUEST, device: 'nvdimm' }).includes('nvdimm=on'));
});
