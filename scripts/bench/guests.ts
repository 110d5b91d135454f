/**
 * In a guest: small durable writes, reads, databases, fio, a tree of files; on persistent memory
 * and on virtio-blk. All guests run at the same time and take turns, so that each round measures
 * all systems within seconds.
 *
 * On two media, which are never mixed in one ratio. On a disk, "durable" is what fsync promises, on
 * both sides of each ratio. In memory it is a store that has left the processor's caches: for the
 * persistent memory of a guest that is a flush instruction, for a block device a flush request.
 */
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { accelerator } from '../guest/accelerator.js';
import { boot } from '../guest/boot.js';
import { repository } from '../guest/files.js';
import { pmemArgs, type Guest } from '../guest/guest.js';
import { rotated, type Bench, type Comparison, type Latencies, type Medium } from './comparison.js';
import { bars } from './plot.js';
import { spreadOf, type Results } from './results.js';
import { freshFile, lastProcessor, type Stand } from './stand.js';

const MiB = 2 ** 20;
const SIZE = 512 * MiB;
const FILE = 64 * MiB;

const PMEM = ['pcow', 'pcow, plain', 'raw pmem', 'qcow2 export pmem'] as const;
const DISKS = ['qcow2 virtio-blk', 'raw virtio-blk', 'pcow virtio-blk'] as const;
const SYSTEMS = [...PMEM, ...DISKS];
type System = (typeof SYSTEMS)[number];

export const guests: Comparison = {
  name: 'guest',
  medium: 'disk',
  run: (bench) => run(bench, 'disk'),
  plots,
};
export const guestsInMemory: Comparison = {
  name: 'guest-memory',
  medium: 'memory',
  run: (bench) => run(bench, 'memory'),
  plots,
};

async function run(bench: Bench, medium: Medium): Promise<void> {
  const { stand, record, short, say } = bench;
  say(`guest (${medium}): booting ${SYSTEMS.length} guests (${await accelerator()})`);
  const running = new Map<System, Guest>();
  try {
    for (const system of SYSTEMS) running.set(system, await start(stand, medium, system));
    const rounds = short ? 3 : 5;
    const seconds = short ? 0.2 : 1.5;
    for (let round = 0; round < rounds; ++round) {
      say(`guest (${medium}): round ${round + 1} of ${rounds}`);
      for (const [table, row, script, unit, better, value] of cases(medium, seconds, short)) {
        const found: [System, number][] = [];
        for (const system of rotated(SYSTEMS, round)) {
          const guest = running.get(system);
          const command = script(isPmem(system));
          if (!guest || command === null) continue;
          const output = await guest.must(command, { timeLimit: 300_000 });
          found.push([system, value(output)]);
        }
        // A guest that has given up its fast clock takes longer for each time stamp.
        const clocks = await clocksOf(running);
        if (new Set(clocks.values()).size > 1) {
          say(
            `guest (${medium}): ${row.join(', ')} is void, the guests' clocks differ: ${[...clocks].join('; ')}`,
          );
          continue;
        }
        for (const [system, figure] of found)
          record.add({ table, row, system, unit, better }, figure);
      }
    }
  } finally {
    for (const guest of running.values()) await guest.kill();
  }
}

async function clocksOf(running: Map<System, Guest>): Promise<Map<System, string>> {
  const clocks = new Map<System, string>();
  for (const [system, guest] of running) {
    const name = await guest.must(
      'cat /sys/devices/system/clocksource/clocksource0/current_clocksource',
    );
    clocks.set(system, name.trim());
  }
  return clocks;
}

const isPmem = (system: System): boolean => (PMEM as readonly string[]).includes(system);

type Case = [
  table: string,
  row: string[],
  /** null: this kind of device does not support it. */
  script: (pmem: boolean) => string | null,
  unit: string,
  better: 'more' | 'less',
  value: (output: string) => number,
];

function* cases(medium: Medium, seconds: number, short: boolean): Generator<Case> {
  const durable = (size: number, pattern: string, how: string): string =>
    `$B/bin/durable /mnt/durable ${FILE} ${size} ${pattern} ${how} ${seconds}`;
  const p50 = (output: string): number =>
    (JSON.parse(output.trim().split('\n').at(-1) ?? '') as Latencies).p50;
  for (const size of [64, 4096])
    for (const pattern of ['seq', 'random']) {
      const row = [`${size} bytes`, pattern];
      const add = (what: string, pmem: string, disk: string | null): Case => [
        'durable',
        [what, ...row],
        (is) =>
          is ? shell(durable(size, pattern, pmem)) : disk && shell(durable(size, pattern, disk)),
        'µs',
        'less',
        p50,
      ];
      // For a block device, what a program must do instead. Below a guest's memory that is a file
      // on a disk, a flush instruction makes nothing durable.
      if (medium === 'memory') yield add('write, flush instruction', 'flush', 'fdatasync');
      yield add('write, msync', 'msync', 'fdatasync');
      yield add('read', 'load', 'pread');
    }
  for (const policy of ['always', 'everysec']) {
    const requests = short ? 500 : 3000;
    yield [
      'redis',
      [`SET, appendfsync ${policy}`],
      () => redis(policy, requests),
      'requests/s',
      'more',
      (output) => Number(/"SET[^"]*","([0-9.]+)"/.exec(output)?.[1]),
    ];
  }
  const transactions = short ? 500 : 10_000;
  yield [
    'sqlite',
    [`${transactions.toLocaleString('en')} transactions, synchronous=FULL`],
    () => sqlite(transactions),
    'transactions/s',
    'more',
    (output) => transactions / Number(output.trim()),
  ];
  for (const [name, rw] of [
    ['random 4 KiB writes, fdatasync', 'randwrite'],
    ['random 4 KiB reads', 'randread'],
  ] as const)
    yield ['fio', [name], () => fio(rw, seconds), 'IOPS', 'more', iops];
  yield [
    'files',
    ['untar 1,000 files and sync'],
    () => untar,
    's',
    'less',
    (output) => Number(output.trim()),
  ];
}

const shell = (line: string): string => `B=/bench; export LD_LIBRARY_PATH=$B/lib; ${line}`;

function redis(policy: string, requests: number): string {
  return shell(
    `L="$B/lib/ld-linux-x86-64.so.2"; rm -rf /mnt/redis; mkdir /mnt/redis; ip link set lo up
     $L $B/bin/redis-server --dir /mnt/redis --save "" --appendonly yes --appendfsync ${policy} --daemonize yes > /dev/null
     until $L $B/bin/redis-cli ping > /dev/null 2>&1; do usleep 50000; done
     $L $B/bin/redis-benchmark -t set -n ${requests} -c 4 -d 64 -r 1000 --csv
     $L $B/bin/redis-cli shutdown nosave > /dev/null 2>&1; true`,
  );
}

/** Prints the seconds that it took. Each transaction inserts a row of 100 bytes. */
function sqlite(transactions: number): string {
  return shell(
    `rm -f /mnt/db*; set -- $(cat /proc/uptime); a=$1
     { echo "PRAGMA synchronous=FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB);"
       yes "INSERT INTO t (value) VALUES (randomblob(100));" | head -n ${transactions}
     } | $B/lib/ld-linux-x86-64.so.2 $B/bin/sqlite3 /mnt/db
     set -- $(cat /proc/uptime); awk "BEGIN { print $1 - $a }"`,
  );
}

function fio(rw: string, seconds: number): string {
  const direct = rw === 'randread' ? '--direct=1' : '--fdatasync=1';
  return shell(
    `$B/lib/ld-linux-x86-64.so.2 $B/bin/fio --name=x --filename=/mnt/durable --size=${FILE} --bs=4k --rw=${rw} ${direct} ` +
      `--ioengine=psync --time_based --runtime=${Math.ceil(seconds)} --output-format=json --thread`,
  );
}

function iops(output: string): number {
  const { jobs } = JSON.parse(output.slice(output.indexOf('{'))) as {
    jobs: { read: { iops: number }; write: { iops: number } }[];
  };
  return Math.max(jobs[0]?.read.iops ?? 0, jobs[0]?.write.iops ?? 0);
}

/** Prints the seconds that it took. */
const untar = shell(
  `rm -rf /mnt/tree; cat $B/tree.tar > /dev/null; sync; s=$(date +%s%N 2> /dev/null || true); set -- $(cat /proc/uptime); a=$1
   tar -C /mnt -xf $B/tree.tar; sync; set -- $(cat /proc/uptime); awk "BEGIN { print $1 - $a }"`,
);

async function start(stand: Stand, medium: Medium, system: System): Promise<Guest> {
  const tools = path.join(repository, 'build/guest/bench.img');
  const qemuArgs = [
    ...(await device(stand, medium, system)),
    ...['-drive', `if=none,id=tools,file=${tools},format=raw,readonly=on`],
    ...['-device', 'virtio-blk-pci,drive=tools,serial=tools'],
  ];
  const pmem = isPmem(system);
  const booting = boot({
    qemuArgs,
    pmemDevices: pmem ? 1 : 0,
    // Without it, a kernel that was not given a processor in time distrusts its clock.
    parameters: ['tsc=reliable'],
    ...(system === 'pcow' ? { commandPrefix: stand.monitored() } : {}),
    timeLimit: 180_000,
  });
  stand.atEnd(async () => (await booting.catch(() => null))?.kill());
  const guest = await booting;
  await guest.must(
    `for d in /sys/block/vd*; do case $(cat $d/serial) in tools) tools=/dev/\${d##*/};; disk) disk=/dev/\${d##*/};; esac; done
     mkdir -p /bench /lib64; mount -t ext4 -o ro $tools /bench
     ${pmem ? 'disk=/dev/pmem0' : ''}
     mkfs.ext4 -q -F -b 4096 $disk && mount -t ext4 ${pmem ? '-o dax' : ''} $disk /mnt`,
  );
  return guest;
}

/** QEMU's options for the measured device. */
async function device(stand: Stand, medium: Medium, system: System): Promise<string[]> {
  // In memory the page cache is the medium: there is nothing below it.
  const cache = medium === 'disk' ? 'none' : 'writeback';
  const disk = (file: string, format: string): string[] => [
    ...['-drive', `if=none,id=disk,file=${file},format=${format},cache=${cache}`],
    ...['-device', 'virtio-blk-pci,drive=disk,serial=disk'],
  ];
  const cpus = `0-${lastProcessor}`;
  switch (system) {
    case 'pcow':
    case 'pcow, plain':
    case 'pcow virtio-blk': {
      const mount = await stand.mount(cpus);
      await Image.create(path.join(mount.directory, 'vm.pcow'), { size: SIZE });
      const file = path.join(mount.mountpoint, 'vm');
      return system === 'pcow virtio-blk' ? disk(file, 'raw') : pmemArgs(file, SIZE);
    }
    case 'raw pmem':
    case 'raw virtio-blk': {
      const file = stand.fresh('raw');
      await freshFile(file, SIZE);
      return system === 'raw pmem' ? pmemArgs(file, SIZE) : disk(file, 'raw');
    }
    case 'qcow2 export pmem':
    case 'qcow2 virtio-blk': {
      const image = stand.fresh('vm.qcow2');
      await stand.command('qemu-img', 'create', '-q', '-f', 'qcow2', image, String(SIZE));
      return system === 'qcow2 virtio-blk'
        ? disk(image, 'qcow2')
        : pmemArgs((await stand.fuseExport(image, cpus)).file, SIZE);
    }
  }
}

function plots({ measurements }: Results): Record<string, string> {
  const of = (table: string) => measurements.filter((each) => each.table === table);
  const rows = (table: string) => [
    ...new Map(of(table).map((each) => [each.row.join(', '), each.row])).keys(),
  ];
  const drawn = (table: string, title: string, unit: string) =>
    bars({
      title,
      unit,
      groups: rows(table),
      series: SYSTEMS.map((name) => ({
        name,
        values: rows(table).map((row) => {
          const found = of(table).find(
            (each) => each.row.join(', ') === row && each.system === name,
          );
          return found ? spreadOf(found.values) : null;
        }),
      })),
    });
  return {
    redis: drawn('redis', 'Redis in a guest: requests a second', '/s'),
    durable: drawn('durable', 'Small accesses in a guest: microseconds (median)', 'µs'),
  };
}
