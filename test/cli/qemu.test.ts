/**
 * src/guest/qemu-options.ts: the arithmetic of the options. That QEMU takes them:
 * qemu-args.test.ts.
 */
import test from 'ava';
import { PcowError } from '../../src/engine/index.js';
import { libvirtElements } from '../../src/guest/libvirt-elements.js';
import {
  type Backing,
  backingIds,
  qemuOptions,
  type QemuRequest,
} from '../../src/guest/qemu-options.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

const VM1: Backing = { file: '/mnt/vm1', size: GIB, id: 'pcow0' };

function options({ file, size, ...request }: Partial<QemuRequest & Backing>) {
  const images = [
    { ...VM1, ...(file !== undefined && { file }), ...(size !== undefined && { size }) },
  ];
  return qemuOptions({
    images,
    device: 'virtio-pmem',
    memory: 4 * GIB,
    unarmed: false,
    ...request,
  });
}

test('virtio-pmem', (t) => {
  const { args, warnings } = options({});
  t.deepEqual(args, [
    ...['-machine', 'q35'],
    ...['-m', '4096M,slots=1,maxmem=5120M'],
    ...['-object', 'memory-backend-file,id=pcow0,share=on,mem-path=/mnt/vm1,size=1073741824'],
    ...['-device', 'virtio-pmem-pci,id=pcow0-device,memdev=pcow0'],
  ]);
  t.deepEqual(warnings, []);
});

test('nvdimm warns that its flushes are not durable', (t) => {
  const plain = options({ device: 'nvdimm' });
  t.true(plain.args.includes('q35,nvdimm=on'));
  t.true(plain.args.includes('nvdimm,id=pcow0-device,memdev=pcow0'));
  t.regex(plain.warnings.join(), /not durable/);
  const unarmed = options({ device: 'nvdimm', unarmed: true });
  t.true(unarmed.args.includes('nvdimm,id=pcow0-device,memdev=pcow0,unarmed=on'));
  t.regex(unarmed.warnings.join(), /read-only/);
});

test('an nvdimm in persistent memory gets pmem=on, and the warning says what that needs', (t) => {
  const images = [{ ...VM1, persistent: true }];
  const { args, warnings } = options({ device: 'nvdimm', images });
  t.true(
    args.includes(
      'memory-backend-file,id=pcow0,share=on,mem-path=/mnt/vm1,size=1073741824,pmem=on',
    ),
  );
  t.regex(warnings.join(), /durable if QEMU runs under the monitor/);
  t.notRegex(warnings.join(), /not durable/);
  t.false(options({ images }).args.some((arg) => arg.includes('pmem=on')));
  const both = options({
    device: 'nvdimm',
    images: [...images, { ...VM1, file: '/mnt/vm2', id: 'pcow1' }],
  });
  t.is(both.warnings.length, 2);
  t.is(both.args.filter((arg) => arg.includes('pmem=on')).length, 1);
});

test('a size that QEMU does not take is refused, with the next one that it takes and the command', (t) => {
  const error = t.throws(() => options({ size: 3 * MIB }), { instanceOf: PcowError });
  t.is(error.code, 'PCOW_INVALID');
  t.regex(
    error.message,
    /"\/mnt\/vm1" has 3145728 bytes, but QEMU needs a multiple of 2 MiB; the next one is 4M/,
  );
  t.is(error.next, 'pcow resize /mnt/vm1 4M');
});

test('below the memory sections of a Linux guest there is a warning', (t) => {
  t.regex(
    options({ size: 130 * MIB }).warnings.join(),
    /not a multiple of 128 MiB.*pcow resize \/mnt\/vm1 256M/,
  );
  t.deepEqual(options({ size: 256 * MIB }).warnings, []);
});

test('maxmem has room for a last part of a GiB', (t) => {
  t.true(options({ size: 1280 * MIB }).args.includes('4096M,slots=1,maxmem=6144M'));
});

test('large images get more address bits', (t) => {
  t.false(options({ size: 512 * GIB }).args.includes('-cpu'));
  t.true(options({ size: 1024 * GIB }).args.includes('max,phys-bits=42'));
  t.true(options({ size: 16 * 1024 * GIB }).args.includes('max,phys-bits=45'));
});

test('a comma in a path is doubled, as QEMU requires', (t) => {
  t.true(
    options({ file: '/mnt/a,b' }).args.some((arg) => arg.includes('mem-path=/mnt/a,,b,size=')),
  );
});

test('an id with other characters is refused', (t) => {
  for (const id of ['', '0', 'a,b', 'a b', 'a=b']) {
    t.is(t.throws(() => backingIds(id, 1), { instanceOf: PcowError }).code, 'PCOW_USAGE');
  }
});

test('several images have an id each, and room for all', (t) => {
  t.deepEqual(backingIds(undefined, 2), ['pcow0', 'pcow1']);
  t.deepEqual(backingIds(undefined, 1), ['pcow0']);
  t.deepEqual(backingIds('disk', 1), ['disk']);
  t.deepEqual(backingIds('disk', 2), ['disk0', 'disk1']);
  const { args } = options({ images: [VM1, { file: '/mnt/vm2', size: 128 * MIB, id: 'pcow1' }] });
  t.deepEqual(args.slice(2), [
    ...['-m', '4096M,slots=2,maxmem=6144M'],
    ...['-object', 'memory-backend-file,id=pcow0,share=on,mem-path=/mnt/vm1,size=1073741824'],
    ...['-device', 'virtio-pmem-pci,id=pcow0-device,memdev=pcow0'],
    ...['-object', 'memory-backend-file,id=pcow1,share=on,mem-path=/mnt/vm2,size=134217728'],
    ...['-device', 'virtio-pmem-pci,id=pcow1-device,memdev=pcow1'],
  ]);
});

test('a domain has at most as many images as free slots, and names are escaped in attributes', (t) => {
  const xml = (images: Backing[]) =>
    libvirtElements({
      images,
      device: 'virtio-pmem',
      memory: GIB,
      cpus: 2,
      unarmed: false,
      monitor: '/a&b.so',
      kvm: true,
    });
  const odd = xml([{ ...VM1, file: `/mnt/a'/><b c="` }]);
  t.true(odd.includes('mem-path=/mnt/a&apos;/&gt;&lt;b c=&quot;,size='));
  t.true(odd.includes(`<env name='LD_PRELOAD' value='/a&amp;b.so'/>`));
  t.true(xml(Array<Backing>(15).fill(VM1)).includes('addr=0x1e'));
  const error = t.throws(() => xml(Array<Backing>(16).fill(VM1)), { instanceOf: PcowError });
  t.is(error.code, 'PCOW_LIMIT');
});
