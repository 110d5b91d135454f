/**
 * `npm run demo:lazy`: an image goes into a registry, and a guest on another host starts while its
 * disk is still there. Then the registry goes away while the guest reads.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { Stage } from './demo/stage.js';
import { Registry } from './registry/debian.js';

/** Bytes of the file that the guest reads, and of one that it does not read. */
const [READ, UNREAD] = [16 << 20, 64 << 20];

const stage = new Stage();
const directory = mkdtempSync(path.join(tmpdir(), 'pcow-registry-'));
const registry = await Registry.make(directory);

await stage.perform(
  () => play(registry.host),
  'mnt',
  async () => {
    await registry.stop();
    rmSync(directory, { recursive: true });
  },
);

async function play(host: string): Promise<void> {
  stage.scene('One host: a guest makes a golden image, and it goes into a registry');
  await registry.start();
  await stage.shell('mkdir one two mnt && pcow create one/golden 256M && pcow mount one mnt');
  await stage.bootOn('mnt/golden');
  await stage.inGuest('mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -t ext4 -o dax /dev/pmem0 /mnt');
  await stage.inGuest(
    `echo "release 1" > /mnt/release && pattern fill /mnt/data 1 ${READ} | tail -n 1`,
  );
  await stage.inGuest(`pattern fill /mnt/more 2 ${UNREAD} | tail -n 1`);
  await stage.inGuest('umount /mnt');
  await stage.powerOff();
  await stage.shell('pcow snapshot mnt/golden@v1 && pcow umount mnt');
  await stage.shell(`pcow push --plain-http one/golden@v1 ${host}/golden:v1`);

  stage.scene('Another host: an image on it, at once, and a guest that reads what it needs');
  await stage.shell(`pcow create two/vm1 --plain-http --base ${host}/golden:v1`);
  await stage.shell('pcow mount two mnt');
  await stage.bootOn('mnt/vm1');
  await stage.inGuest('mount -t ext4 -o dax /dev/pmem0 /mnt && cat /mnt/release');
  await stage.shell('pcow list mnt');

  stage.scene('The registry goes away while the guest reads: it waits, and goes on');
  await registry.stop();
  await stage.inGuest('(pattern verify /mnt/data 1 > /verified) & echo reading');
  const waits = `grep -A 4 '"waiting": {' mnt/.pcow/golden/status`;
  await stage.shell(`until ${waits} | grep 'no answer'; do sleep 0.2; done`);
  await registry.start();
  const verified = await stage.inGuest('until grep verified /verified; do sleep 1; done');
  if (!verified.includes(' 0 wrong')) throw new Error(`the files are not right: ${verified}`);

  stage.scene('The rest, and then the registry is not needed any more');
  await stage.shell('pcow prefetch mnt/vm1 && pcow list mnt');
  await registry.stop();
  await stage.inGuest('umount /mnt && e2fsck -fn /dev/pmem0');
  await stage.powerOff();
  await stage.shell('pcow umount mnt');
}
