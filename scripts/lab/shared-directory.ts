/**
 * A part of the suite `filesystems`: two hosts use one image directory, by NFS 4.2. Host one is its
 * server as well.
 */
import { must, type Stage, until } from './conduct.js';
import type { Host, Hosts } from './hosts.js';

const LOCKED = 6;
/** Changes of one image that each host tries, at the same time as the other. */
const TRIES = 8;

export async function sharedDirectory({ hosts, step }: Stage): Promise<void> {
  const [one, two] = hosts.all as [Host, Host];
  const both = [one, two];

  await step('both hosts have the image directory by NFS 4.2', async () => {
    await one.sh('. scripts/lab/nfs-server; serve_nfs');
    for (const host of both)
      await host.sh('mkdir -p /mnt/nfs && mount -t nfs -o vers=4.2 one:/ /mnt/nfs');
    await one.sh('for name in vm1 vm2; do pcow create /mnt/nfs/images/$name 16M; done');
  });

  for (const [writer, other] of [
    [two, one],
    [one, two],
  ] as const) {
    const image = `/mnt/nfs/images/vm${writer.name === 'one' ? 2 : 1}`;
    const names = (text: string): void => {
      must(
        new RegExp(`\\(pid \\d+\\) on the host ${writer.name}$`, 'm').test(text),
        `it does not name the host ${writer.name}:\n${text}`,
      );
    };
    await step(`host ${other.name} learns that host ${writer.name} writes an image`, async () => {
      await mountThere(writer);
      await writer.sh(`. scripts/lab/reader; reader /mnt/pcow/${image.slice(-3)}`);
      await answers(writer, 'write 0 300000 7', 'ok');
      for (const change of [`snapshot ${image}@new`, `resize ${image} 32M`, `rm ${image}`])
        names(await refused(other, change));
      const list = await other.sh('pcow list /mnt/nfs/images');
      must(list.includes(`on the host ${writer.name}`), `pcow list says:\n${list}`);
      await mountThere(other);
      names(await refused(other, `snapshot /mnt/pcow/${image.slice(-3)}@new`));
      await other.sh('pcow umount /mnt/pcow');
    });
    await step(`host ${other.name} writes it when host ${writer.name} has closed it`, async () => {
      await answers(writer, 'sync', 'ok');
      await writer.sh('. scripts/lab/reader; end_reader; pcow umount /mnt/pcow');
      await other.sh(`pcow snapshot ${image}@after && pcow check ${image}`);
    });
  }

  await step(
    `${2 * TRIES} changes of one image by two hosts: each is made or refused`,
    async () => {
      const made = await Promise.all(both.map((host) => changes(host)));
      const wanted = made.flat().sort();
      const is = await one.sh(
        `pcow list /mnt/nfs/images/vm1 --json | grep -o '"name": "race[^"]*' | cut -d '"' -f 4 | sort`,
      );
      must(is === wanted.join('\n'), `made: ${wanted.join(' ')}\nthere: ${is}`);
      await two.sh('pcow check /mnt/nfs/images/vm1');
    },
  );

  await step('a host that lost its link loses the image, and never writes it again', () =>
    partition(hosts, one, two),
  );
}

async function mountThere(host: Host): Promise<void> {
  await host.sh('pcow mount /mnt/nfs/images /mnt/pcow');
}

async function answers(host: Host, line: string, wanted: string): Promise<void> {
  const answer = await host.sh(`. scripts/lab/reader; ask_reader '${line}'`);
  must(answer === wanted, `host ${host.name} answers ${answer} to ${line}`);
}

/** The message. */
async function refused(host: Host, command: string): Promise<string> {
  const { output, exitCode } = await host.try(`pcow ${command} 2>&1`);
  must(exitCode === LOCKED, `host ${host.name}: exit code ${exitCode} from ${command}: ${output}`);
  return output;
}

/** The names of the snapshots that this host has taken. */
async function changes(host: Host): Promise<string[]> {
  const made: string[] = [];
  for (let number = 0; number < TRIES; ++number) {
    const name = `race-${host.name}-${number}`;
    const { output, exitCode } = await host.try(`pcow snapshot /mnt/nfs/images/vm1@${name} 2>&1`);
    if (exitCode === 0) made.push(name);
    else must(exitCode === LOCKED, `exit code ${exitCode}: ${output}`);
  }
  return made;
}

/** Host two has stored what it has not synced. The server gives its lock to host one meanwhile. */
async function partition(hosts: Hosts, one: Host, two: Host): Promise<void> {
  await mountThere(two);
  await two.sh('. scripts/lab/reader; reader /mnt/pcow/vm1');
  await answers(two, 'write 0 4096 21', 'ok');
  await answers(two, 'sync', 'ok');
  hosts.link(two, false);
  await two.sh('. scripts/lab/reader; give "write 0 4096 22" "write 65536 4096 22" sync');
  await until(
    async () => (await one.try('pcow snapshot /mnt/nfs/images/vm1@taken')).exitCode === 0,
  );
  await mountThere(one);
  await one.sh('. scripts/lab/reader; reader /mnt/pcow/vm1');
  await answers(one, 'read 0', '21');
  await answers(one, 'write 0 4096 23', 'ok');
  await answers(one, 'sync', 'ok');
  hosts.link(two, true);
  // It is connected again, and what it has not stored would be stored now.
  await until(async () => (await two.try('timeout 20 ls /mnt/nfs/images')).exitCode === 0);
  await two.try('timeout 60 sync');
  await two.sh('kill -KILL $(pidof map-tool); pcow umount /mnt/pcow || umount -l /mnt/pcow');
  await answers(one, 'read 0', '23');
  await answers(one, 'read 65536', '7');
  await one.sh('. scripts/lab/reader; end_reader; pcow umount /mnt/pcow');
  await one.sh('pcow check /mnt/nfs/images/vm1');
  must(await hasOnly(one), 'what host two stored after it lost the image is in the file');
}

/** Whether the image's file has no block of what host two stored without its lock. */
async function hasOnly(one: Host): Promise<boolean> {
  const block = `$(printf '\\x16%.0s' {1..4096})`;
  const { exitCode } = await one.try(`grep -aqF "${block}" /srv/images/vm1.pcow`);
  return exitCode === 1;
}
