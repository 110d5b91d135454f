/**
 * `npm run demo`: a Linux guest whose persistent memory is an image, with a base, a snapshot while
 * the guest writes, and a rollback. Every command is printed as a user would type it, and really
 * run.
 */
import { Stage } from './demo/stage.js';

const started = Date.now();
const stage = new Stage();

await stage.perform(async () => {
  await play();
  process.stdout.write(
    `\nThat was all, in ${Math.round((Date.now() - started) / 1000)} s. Next: pcow help, README.md\n`,
  );
}, 'mnt');

async function play(): Promise<void> {
  stage.scene('A directory of images, with one image in it, mounted');
  await stage.shell('mkdir images mnt');
  await stage.shell('pcow create images/base 256M');
  await stage.shell('pcow mount images mnt');
  await stage.shell('ls -l mnt');

  stage.scene(
    'The base: a file system, made by a guest that has the flat file as its persistent memory',
  );
  await stage.bootOn('mnt/base');
  await stage.inGuest('mkfs.ext4 -q -b 4096 -L system /dev/pmem0');
  await stage.inGuest('mount -t ext4 -o dax /dev/pmem0 /mnt && grep pmem0 /proc/mounts');
  await stage.inGuest('echo "release 1" > /mnt/release && sync');
  await stage.powerOff();

  stage.scene('An image for a virtual machine, on that base: nothing is copied');
  await stage.shell('pcow create images/vm1 --base images/base');
  await stage.shell('pcow list images');

  stage.scene('The virtual machine works with files');
  await stage.bootOn('mnt/vm1');
  await stage.inGuest('mount -t ext4 -o dax /dev/pmem0 /mnt && cat /mnt/release');
  await stage.inGuest(
    'echo "dear diary" > /mnt/diary && pattern fill /mnt/data 1 16777216 | tail -n 1 && sync',
  );

  stage.scene(
    'A snapshot while the guest writes: one write to a control file, and the guest is not stopped',
  );
  await stage.inGuest(
    '(while echo tick >> /mnt/ticks; do sync; done) > /dev/null 2>&1 & echo $! > /ticker; sleep 1',
  );
  await stage.shell('echo before-upgrade > mnt/.pcow/vm1/snapshot');
  await stage.shell('grep -o "lastFreezeNs.*" mnt/.pcow/vm1/status');
  await stage.inGuest('kill $(cat /ticker) && sync && wc -l < /mnt/ticks');
  await stage.shell('cat mnt/.pcow/vm1/snapshots');

  stage.scene('The upgrade goes wrong');
  await stage.inGuest('echo "release 2 (broken)" > /mnt/release && rm /mnt/diary');
  await stage.inGuest('pattern fill /mnt/data 2 16777216 | tail -n 1 && sync');
  await stage.inGuest('cat /mnt/release; ls /mnt');
  await stage.shell('pcow top mnt --once');
  await stage.powerOff();

  stage.scene('Back to the snapshot');
  await stage.shell('echo before-upgrade > mnt/.pcow/vm1/rollback');
  await stage.bootOn('mnt/vm1');
  await stage.inGuest('mount -t ext4 -o dax /dev/pmem0 /mnt');
  expect(await stage.inGuest('cat /mnt/release /mnt/diary'), 'release 1\ndear diary\n');
  expect(await stage.inGuest('pattern verify /mnt/data 1'), 'verified 4096 pages, 0 wrong\n');
  await stage.powerOff();

  stage.scene('What it takes on the disk, and the end');
  await stage.shell('pcow info mnt/vm1');
  await stage.shell('du -h --apparent-size mnt/vm1 && du -h images/*');
  await stage.shell('pcow umount mnt');
}

function expect(found: string, wanted: string): void {
  if (found !== wanted)
    throw new Error(
      `the old files are not back: found ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`,
    );
}
