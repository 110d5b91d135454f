/**
 * Isolated writes over a base, the worst case for the number of mappings: it stays within the
 * budget, and so below vm.max_map_count. With PCOW_LONG set, also 200,000 of them with the default
 * budget.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';

import test, { type ExecutionContext } from 'ava';

import { AT_LENGTH } from '../helpers/effort.js';
import { imagesFor } from '../helpers/mount.js';
import { attachedTo, imageOnBase, monitored, monitorReport } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';

const BLOCK = 65536;
const BASE_BYTE = 7;
/** A process has some mappings of its own, and faults make more while a chunk is moved. */
const SLACK = 100;
const most = (budget: number): number => budget + budget / 8 + SLACK;

/**
 * One byte in each block, twice, with a snapshot in between. The message about disk space is
 * printed once.
 */
async function isolatedBytes(
  t: ExecutionContext<unknown>,
  blocks: number,
  budget: number,
  settings: Record<string, string>,
): Promise<void> {
  const mount = await imagesFor(t, {});
  await imageOnBase(mount, 'vm1', blocks * BLOCK, () => BASE_BYTE);
  await mount.mount();
  const writer = await program('isolated-bytes', mount.scratch);
  const log = path.join(mount.scratch, 'log');
  const tool = await monitored(t, writer, [mount.file('vm1'), String(blocks), String(BLOCK)], {
    PCOW_MONITOR_LOG: log,
    ...settings,
  });
  for (const byte of [1, 2]) {
    const used = Number(await tool.ask(`fill ${byte}`));
    t.true(used <= most(budget), `${used} mappings with a budget of ${budget}`);
    t.true(used > budget / 2, `${used} mappings: the budget of ${budget} was never reached`);
    t.is(await tool.ask(`check ${byte}`), '0');
    if (byte === 1) await mount.write('s', 'vm1', 'snapshot');
  }
  t.true(((await monitorReport(mount, 'vm1')).promotions ?? 0) > 0);
  t.is(
    (await readFile(log, 'utf8')).match(/too fragmented for this process's mapping limit/g)?.length,
    1,
  );
  await tool.end();
  await attachedTo(mount, 'vm1', null);
}

test.serial('isolated writes over a base stay under a small budget of mappings', async (t) => {
  await isolatedBytes(t, 6000, 500, { PCOW_MAPPING_BUDGET: '500' });
});

if (AT_LENGTH) {
  test.serial('200,000 isolated writes over a base stay under the default budget', async (t) => {
    t.timeout(30 * 60_000);
    const limit = Number(await readFile('/proc/sys/vm/max_map_count', 'utf8'));
    await isolatedBytes(t, 200_000, Math.floor(limit / 4) * 3, {});
  });
}
