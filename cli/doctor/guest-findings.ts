/** What in a guest's description works with Pcow, what does not, and how to fix it. */
import { realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { attachedTo } from '../../src/client/mount-status.js';
import { IMAGE_SUFFIX } from '../../src/images/image-names.js';
import { mountHolding } from '../../src/images/mount-table.js';
import { briefTroubleOnTheWay } from '../../src/images/mount-answers.js';
import { maybePersistent } from '../../src/guest/backings.js';
import {
  addressBits,
  DEFAULT_ADDRESS_BITS,
  nextSection,
  NVDIMM_WARNING,
  SECTION,
  sectionWarning,
  SIZE_STEP,
} from '../../src/guest/qemu-options.js';
import { quote, word } from '../../src/engine/quote.js';
import { formatSize, sizeArgument } from '../../src/images/sizes.js';
import { type Finding, ok, problem, warning } from './finding.js';
import type { Backend, Guest } from './guest.js';

/** A backend, and the file at its path. */
interface Found {
  backend: Backend;
  /** The size of the flat file in bytes. */
  size: number;
  /** Whether the image file is in persistent memory. */
  persistent: boolean;
}

export async function guestFindings(guest: Guest): Promise<Finding[]> {
  const findings: Finding[] = [];
  const found: Found[] = [];
  for (const backend of guest.backends) {
    const place = await placeOf(backend);
    findings.push(...place.findings);
    if (place.size !== null)
      found.push({ backend, size: place.size, persistent: place.persistent });
  }
  if (found.length === 0 && findings.length === 0) {
    findings.push(
      problem(
        'backend',
        'no memory of this guest is a mounted image',
        'pcow qemu-args IMAGE, or pcow libvirt-xml IMAGE',
      ),
    );
  }
  for (const it of found) {
    findings.push(
      ...optionFindings(guest, it.backend),
      ...pmemFindings(guest, it),
      ...sizeFindings(guest, it),
      ...deviceFindings(guest, it),
    );
  }
  const twice = found.find(({ backend }, at) =>
    found.some((other, before) => before < at && other.backend.path === backend.path),
  );
  if (twice)
    findings.push(
      problem('twice', `${quote(twice.backend.path)} is listed twice`, 'remove one of them'),
    );
  if (found.length > 0) {
    findings.push(
      ...memoryFindings(guest, found),
      ...sharingFindings(guest),
      monitorFinding(guest),
    );
    findings.push(...guest.unseen.map((what) => warning('unseen', what, 'look at it yourself')));
    findings.push(...promiseFindings(guest));
  }
  return findings;
}

/**
 * Whether a backend is the flat file of a mount, and its size; null if it is another file, or none.
 */
async function placeOf({
  path: file,
}: Backend): Promise<{ size: number | null; persistent: boolean; findings: Finding[] }> {
  const none = (finding: Finding) => ({ size: null, persistent: false, findings: [finding] });
  const trouble = await briefTroubleOnTheWay(file);
  if (trouble !== null) return none(problem('mount', trouble.message, trouble.cure));
  let real: string;
  try {
    real = await realpath(file);
  } catch {
    return none(
      problem(
        'path',
        `there is no ${quote(file)}`,
        'pcow mount DIR MOUNTPOINT, and use MOUNTPOINT/NAME',
      ),
    );
  }
  const held = await mountHolding(real);
  if (held === null) {
    return none(
      real.endsWith(IMAGE_SUFFIX)
        ? problem(
            'path',
            `${quote(file)} is the image file: what a guest writes there destroys it`,
            'mount its directory, and use the flat file: MOUNTPOINT/NAME',
          )
        : problem(
            'path',
            `${quote(file)} is not in a mount of Pcow`,
            'pcow mount DIR MOUNTPOINT, and use MOUNTPOINT/NAME',
          ),
    );
  }
  if (held.inside === '') {
    return none(
      problem(
        'path',
        `${quote(file)} is the mountpoint: QEMU would make a file of its own there, which disappears when QEMU ends`,
        'name the flat file: MOUNTPOINT/NAME',
      ),
    );
  }
  if (held.inside.startsWith('.pcow')) {
    return none(
      problem(
        'path',
        `${quote(file)} is a snapshot or a control file: a guest can't write it`,
        'pcow clone IMAGE@SNAPSHOT NEW',
      ),
    );
  }
  const { size } = await stat(real);
  const attached = await attachedTo(held.mount.mountpoint, held.inside);
  return {
    size,
    persistent: await maybePersistent(
      path.join(held.mount.directory, `${held.inside}${IMAGE_SUFFIX}`),
    ),
    findings: [
      attached === null
        ? ok('path', `${quote(file)} is an image of ${formatSize(size)}`)
        : problem(
            'attached',
            `${quote(file)} is attached to process ${attached.pid} (${attached.command}): a second guest can't have it`,
            'let that end first, or clone a snapshot of it',
          ),
      ...(held.mount.readOnly
        ? [
            problem(
              'read-only',
              `${held.mount.mountpoint} is mounted read-only`,
              'mount it for writing',
            ),
          ]
        : []),
    ],
  };
}

function optionFindings({ words }: Guest, backend: Backend): Finding[] {
  const name = quote(backend.path);
  const findings: Finding[] = [];
  if (!backend.shared) {
    findings.push(
      problem(
        'share',
        `${name} is mapped privately: what the guest writes is lost when it ends`,
        words.share,
      ),
    );
  }
  if (backend.discardData) {
    findings.push(
      problem('discard-data', `QEMU discards all of ${name} when it ends`, words.discardData),
    );
  }
  if (backend.preallocated) {
    findings.push(
      problem(
        'prealloc',
        `QEMU touches every page of ${name} at the start, which fills the thin image`,
        words.prealloc,
      ),
    );
  }
  if (backend.readOnly) {
    findings.push(
      problem(
        'readonly',
        `${name} is mapped read-only: what the guest writes is dropped without an error`,
        words.readOnly,
      ),
    );
  }
  if (backend.offset > 0) {
    findings.push(
      problem(
        'offset',
        `the guest does not see the first ${formatSize(backend.offset)} of ${name}`,
        words.offset,
      ),
    );
  }
  return findings;
}

/**
 * QEMU's pmem=on requests MAP_SYNC, which only the monitor grants, and only in persistent memory.
 */
function pmemFindings({ words, monitored }: Guest, { backend, persistent }: Found): Finding[] {
  if (!backend.pmem) return [];
  const name = quote(backend.path);
  if (!persistent) {
    return [
      problem(
        'pmem',
        `${name} is promised to be persistent memory, and is not: MAP_SYNC is refused`,
        words.pmem,
      ),
    ];
  }
  return [
    monitored === false
      ? warning(
          'pmem',
          `${name}: pmem=on has no effect without the monitor: MAP_SYNC is refused`,
          'use pcow run',
        )
      : ok(
          'pmem',
          `${name} is in persistent memory: under the monitor, what the guest flushes is durable`,
        ),
  ];
}

function sizeFindings({ words }: Guest, { backend, size }: Found): Finding[] {
  const name = quote(backend.path);
  const asked = backend.size ?? size - backend.offset;
  if (asked + backend.offset > size) {
    return [
      problem(
        'size',
        `${asked} bytes are requested${backend.offset > 0 ? `, from byte ${backend.offset} on` : ''}, but ${name} has ${size}: QEMU refuses this`,
        `${words.size(size)}, or pcow resize ${word(backend.path)} ${sizeArgument(asked)}`,
      ),
    ];
  }
  const findings: Finding[] = [];
  if (asked + backend.offset < size) {
    findings.push(
      warning(
        'size',
        `the guest gets ${formatSize(asked)} of the ${formatSize(size)} of ${name}`,
        words.size(size),
      ),
    );
  }
  if (asked % SIZE_STEP !== 0) {
    const fitting = Math.ceil(size / SIZE_STEP) * SIZE_STEP;
    findings.push(
      problem(
        'size',
        `the ${asked} bytes of ${name} are not a multiple of 2 MiB, as QEMU needs it`,
        `pcow resize ${word(backend.path)} ${sizeArgument(fitting)}, and ${words.size(fitting)}`,
      ),
    );
  } else if (asked % SECTION !== 0) {
    findings.push(
      warning(
        'size',
        `${name}: ${sectionWarning(asked)}`,
        `pcow resize ${word(backend.path)} ${nextSection(asked)}`,
      ),
    );
  }
  return findings;
}

function deviceFindings(
  { devices, ordinary, words, monitored }: Guest,
  { backend: { id, path: file }, persistent }: Found,
): Finding[] {
  const name = quote(file);
  const memory = ordinary.find(({ backend }) => backend === id);
  if (memory !== undefined) {
    return [
      problem(
        'ordinary-memory',
        `${name} is ordinary memory of the guest, which overwrites it as it starts (${memory.by})`,
        `use -device virtio-pmem-pci,memdev=${id} in its place`,
      ),
    ];
  }
  const device = devices.find(({ backend }) => backend === id);
  if (device === undefined) {
    return [
      problem(
        'device',
        `no device of the guest has ${name}`,
        `add -device virtio-pmem-pci,memdev=${id}`,
      ),
    ];
  }
  if (device.kind !== 'nvdimm') return [];
  const { unarmed, labelSize } = device;
  const durable = persistent && monitored !== false;
  return [
    ...(unarmed
      ? [
          warning(
            'unarmed',
            `${name}: unarmed=on: a Linux guest makes the device read-only`,
            'use virtio-pmem to write',
          ),
        ]
      : durable
        ? []
        : [warning('nvdimm', `${name}: ${NVDIMM_WARNING}`, words.unarmed)]),
    ...(labelSize > 0
      ? [
          warning(
            'labels',
            `${name}: labels use its last ${formatSize(labelSize)}: data there is hidden from the guest, and overwritten`,
            words.labels,
          ),
        ]
      : []),
  ];
}

function memoryFindings(guest: Guest, found: Found[]): Finding[] {
  const { words, maxMemory, memory } = guest;
  const findings: Finding[] = [];
  const wanted = found.reduce(
    (sum, { backend, size }) => sum + (backend.size ?? size),
    memory ?? 0,
  );
  if (maxMemory === null || maxMemory < wanted) {
    const has = maxMemory === null ? 'none' : formatSize(maxMemory);
    findings.push(
      problem(
        'maxmem',
        `the guest needs room for ${formatSize(wanted)}, but has ${has}`,
        words.maxMemory,
      ),
    );
  }
  const modules = guest.devices.filter(({ kind }) => kind === 'nvdimm').length;
  if (modules > 0 && !guest.nvdimmMachine) {
    findings.push(
      problem('nvdimm-machine', 'the machine does not support NVDIMMs', words.nvdimmMachine),
    );
  }
  if (!guest.acpi) {
    const lack =
      modules > 0
        ? 'the machine has no ACPI, without which QEMU refuses an NVDIMM'
        : 'the machine has no ACPI: a guest’s flushes to virtio-pmem never returned in such a one';
    findings.push(problem('acpi', lack, words.acpi));
  }
  if (guest.slots < modules) {
    findings.push(
      problem(
        'slots',
        `${modules} NVDIMMs need as many slots, but there are ${guest.slots}`,
        words.slots,
      ),
    );
  }
  const bits = addressBits(Math.max(maxMemory ?? 0, wanted));
  const has = guest.physicalBits ?? DEFAULT_ADDRESS_BITS;
  if (has !== 'host' && has < bits) {
    findings.push(
      problem(
        'address-bits',
        `the guest's processor has ${has} address bits, and its memory needs ${bits}`,
        words.physicalBits(bits),
      ),
    );
  }
  return findings;
}

/** What the guest, or its operator, is promised but does not get. */
function promiseFindings({ words, devices, cachesPersist, volatile, throwAway }: Guest): Finding[] {
  return [
    ...(cachesPersist && devices.some(({ kind }) => kind === 'nvdimm')
      ? [
          problem(
            'persistence',
            'the guest is told that its processor caches survive a power cut, so it never flushes',
            words.cachesPersist,
          ),
        ]
      : []),
    ...volatile.map((what) =>
      problem(
        'volatile',
        `${what} is not a file: what the guest writes to that device is lost when QEMU ends`,
        'use an image',
      ),
    ),
    ...(throwAway
      ? [
          warning(
            'snapshot-option',
            '-snapshot is for disks: what the guest writes to an image stays',
            'pcow clone IMAGE@SNAPSHOT NEW, and start the guest on that',
          ),
        ]
      : []),
  ];
}

function sharingFindings({ words, locked, vhostUser, vfio }: Guest): Finding[] {
  return [
    ...(locked
      ? [
          problem(
            'locked',
            'all memory is to be locked: that touches every page of the image, and the monitor refuses it',
            words.locked,
          ),
        ]
      : []),
    ...vhostUser.map((device) =>
      problem(
        'vhost-user',
        `${device}: its process maps the flat file itself, and would not see what the guest writes`,
        'use a device inside QEMU, or run it without the monitor (pcow run --plain)',
      ),
    ),
    ...vfio.map((device) =>
      problem(
        'vfio',
        `${device}: it pins the guest's memory, and its writes would miss copy-on-write and snapshots`,
        'remove it',
      ),
    ),
  ];
}

function monitorFinding({ monitored, emulator }: Guest): Finding {
  if (monitored === true) return ok('monitored', 'it runs under the monitor');
  return monitored === false
    ? warning(
        'monitored',
        'it runs without the monitor: slower, snapshots stop it, and it does not survive the mount',
        `pcow run -- ${word(emulator)} …`,
      )
    : warning(
        'monitored',
        `this check can't see whether ${emulator} starts QEMU under the monitor`,
        'pcow top MOUNTPOINT, when it runs',
      );
}
