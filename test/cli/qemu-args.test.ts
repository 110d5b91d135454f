/** The installed QEMU accepts what `pcow qemu-args` prints, and then has the memory. */
import { execFile } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, pcowIn, succeeds, type Run } from './outcome.js';

/** A mount of images of these sizes: mnt/SIZE. */
async function mountOf(
  t: ExecutionContext<unknown>,
  ...sizes: string[]
): Promise<{ scratch: string; pcow: Run }> {
  const scratch = await scratchDirectory(t);
  await mkdir(path.join(scratch, 'images'));
  await mkdir(path.join(scratch, 'mnt'));
  const pcow = pcowIn(scratch);
  for (const size of sizes) await succeeds(t, pcow('create', `images/${size}`, size));
  await mounted(t, path.join(scratch, 'images'), path.join(scratch, 'mnt'));
  return { scratch, pcow };
}

interface MemoryDevice {
  type: string;
  data: { size: number; id?: string };
}

/** Starts QEMU with these options, paused, queries its memory devices, and ends it. */
function memoryDevices(args: string[]): Promise<MemoryDevice[]> {
  return new Promise((resolve, reject) => {
    const options = [
      '-accel',
      'tcg',
      '-S',
      '-nodefaults',
      '-display',
      'none',
      '-qmp',
      'stdio',
      ...args,
    ];
    const qemu = execFile(
      'qemu-system-x86_64',
      options,
      { timeout: 600_000, killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        const answers = stdout
          .split('\n')
          .filter((line) => line.includes('"memdev"'))
          .map((line) => JSON.parse(line) as { return: MemoryDevice[] });
        const [answer] = answers;
        if (error !== null || answer === undefined) reject(new Error(`QEMU: ${stderr || stdout}`));
        else resolve(answer.return);
      },
    );
    for (const command of ['qmp_capabilities', 'query-memory-devices', 'quit']) {
      qemu.stdin?.write(`${JSON.stringify({ execute: command })}\n`);
    }
  });
}

test.serial('QEMU accepts the options for images of all sizes, with both devices', async (t) => {
  const { pcow } = await mountOf(t, '2M', '128M', '5G', '2T');
  for (const [size, bytes] of [
    ['2M', 2 ** 21],
    ['128M', 2 ** 27],
    ['5G', 5 * 2 ** 30],
    ['2T', 2 ** 41],
  ] as const) {
    for (const device of ['virtio-pmem', 'nvdimm'] as const) {
      const text = await succeeds(
        t,
        pcow('qemu-args', `mnt/${size}`, '--device', device, '--memory', '64M'),
      );
      const [memory] = await memoryDevices(text.trim().split(/\s+/));
      t.is(memory?.type, device);
      t.is(memory?.data.size, bytes);
    }
  }
});

test.serial('the JSON has the same options', async (t) => {
  const { pcow } = await mountOf(t, '128M');
  const words = [
    'qemu-args',
    'mnt/128M',
    '--device',
    'nvdimm',
    '--unarmed',
    '--id',
    'disk',
    '--memory',
    '64M',
  ];
  const text = await succeeds(t, pcow(...words));
  const json = JSON.parse(await succeeds(t, pcow(...words, '--json'))) as Record<string, unknown>;
  t.deepEqual(Object.keys(json).sort(), ['args', 'device', 'file', 'images', 'size', 'warnings']);
  t.deepEqual(json.args, text.trim().split(/\s+/));
  const [memory] = await memoryDevices(json.args as string[]);
  t.is(memory?.data.id, 'disk-device');
});

test.serial('both names of the image work; warnings go to stderr', async (t) => {
  const { pcow, scratch } = await mountOf(t, '130M');
  const outcome = await pcow('qemu-args', 'images/130M.pcow');
  t.regex(outcome.stdout, new RegExp(`mem-path=${scratch}/mnt/130M,size=136314880\\n`));
  t.regex(outcome.stderr, /warning: .*128 MiB/);
});

test.serial(
  'a size that QEMU does not accept is refused, with the command that fixes it',
  async (t) => {
    const { pcow, scratch } = await mountOf(t, '1M');
    await fails(
      t,
      pcow('qemu-args', 'mnt/1M'),
      3,
      /QEMU needs a multiple of 2 MiB/,
      /pcow resize \S*mnt\/1M 2M/,
    );
    await succeeds(t, pcow('resize', `${scratch}/mnt/1M`, '2M'));
    await succeeds(t, pcow('qemu-args', 'mnt/1M'));
  },
);

test.serial('several images; none twice', async (t) => {
  const { pcow, scratch } = await mountOf(t, '128M', '256M');
  const text = await succeeds(t, pcow('qemu-args', 'mnt/128M', 'images/256M', '--memory', '64M'));
  const devices = await memoryDevices(text.trim().split(/\s+/));
  t.deepEqual(
    devices.map(({ data }) => [data.id, data.size]),
    [
      ['pcow0-device', 2 ** 27],
      ['pcow1-device', 2 ** 28],
    ],
  );
  await fails(t, pcow('qemu-args', 'mnt/128M', `${scratch}/images/128M.pcow`), 2, /named twice/);
});

test.serial('QEMU accepts the arguments that libvirt passes to it', async (t) => {
  const { pcow } = await mountOf(t, '128M', '256M');
  for (const device of ['virtio-pmem', 'nvdimm']) {
    const words = [
      'libvirt-xml',
      'mnt/128M',
      'mnt/256M',
      '--device',
      device,
      '--memory',
      '64M',
      '--cpus',
      '2',
    ];
    const xml = await succeeds(t, pcow(...words));
    const args = [...xml.matchAll(/<arg value='([^']*)'\/>/g)].map(([, value]) => value ?? '');
    // The rest of the domain, as libvirt writes it.
    const rest = ['-machine', 'q35', '-m', 'size=65536k,slots=2,maxmem=2162688k', '-smp', '2'];
    const [maxMemory] = /<maxMemory .*/.exec(xml) ?? [];
    t.is(maxMemory, "<maxMemory slots='2' unit='KiB'>2162688</maxMemory>");
    const devices = await memoryDevices([...rest, ...args]);
    t.deepEqual(
      devices.map(({ type, data }) => [type, data.size]),
      [
        [device, 2 ** 27],
        [device, 2 ** 28],
      ],
    );
    t.regex(xml, /<cell id='0' cpus='0-1' memory='65536' unit='KiB'\/>/);
    t.regex(xml, /<env name='LD_PRELOAD' value='\S+libpcow-monitor\.so'\/>/);
  }
  t.notRegex(await succeeds(t, pcow('libvirt-xml', 'mnt/128M', '--plain')), /LD_PRELOAD/);
  await fails(t, pcow('libvirt-xml', 'mnt/128M', '--cpus', '0'), 2, /from 1 to 9999/);
  await fails(
    t,
    pcow('libvirt-xml', 'mnt/128M', '--unarmed'),
    2,
    /only supported with --device nvdimm/,
  );
});
