/**
 * `--wait`: a command waits until no other process has the image open for writing or the directory
 * mounted, but no longer than the option says.
 */
import { mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { eventually } from '../helpers/eventually.js';
import { mounted } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { fails, shellIn, succeeds, type Outcome } from './outcome.js';

interface Place {
  directory: string;
  pcow: (line: string) => Promise<Outcome>;
  /**
   * Starts lines with `--wait`, and returns when each of them says that it waits; then what comes
   * of them.
   */
  begun: (...lines: string[]) => Promise<Promise<Outcome>[]>;
}

async function place(t: ExecutionContext<unknown>): Promise<Place> {
  const directory = await scratchDirectory(t);
  const shell = await shellIn(t, directory);
  const begun = async (...lines: string[]) => {
    const outcomes = lines.map((line, at) =>
      shell(`${line} --wait 900 2> said-${at}; code=$?; cat said-${at} >&2; exit $code`),
    );
    for (const [at, outcome] of outcomes.entries()) {
      const said = () => readFile(path.join(directory, `said-${at}`), 'utf8').catch(() => '');
      const waits = eventually(async () => (await said()).includes('waiting for it to end')).then(
        () => null,
      );
      const ended = await Promise.race([waits, outcome]);
      t.is(ended, null, `${lines[at]} did not wait: ${ended?.stderr}`);
    }
    return outcomes;
  };
  return { directory, pcow: (line) => shell(`pcow ${line}`), begun };
}

function holder(directory: string, name: string): Promise<Image> {
  return Image.open(path.join(directory, `${name}.pcow`), { write: true });
}

test('who has the image is waited for, and no longer than is said', async (t) => {
  const { directory, pcow, begun } = await place(t);
  await succeeds(t, pcow('create vm1 1M'));
  const guest = await holder(directory, 'vm1');
  await fails(t, pcow('snapshot vm1@one'), 6, /open for writing/);
  await fails(t, pcow('snapshot vm1@one --wait 0.2'), 6, /open for writing/);
  const waiting = await begun('pcow snapshot vm1@one', 'pcow resize vm1 2M', 'pcow flatten vm1');
  await guest.close();
  for (const outcome of waiting) await succeeds(t, outcome);
  await fails(t, pcow('resize vm1 2M --wait long'), 2, /number of seconds/);
});

test('checksums are made, and a base is frozen, when it is given back', async (t) => {
  const { directory, pcow, begun } = await place(t);
  await succeeds(t, pcow('create vm1 1M'));
  const guest = await holder(directory, 'vm1');
  await guest.write(Buffer.from('data'), 0);
  await fails(t, pcow('clone vm1 vm2 --wait 0.2'), 6, /open for writing/);
  const waiting = await begun(
    'pcow scrub vm1 --add',
    'pcow clone vm1 vm2',
    'pcow create vm3 -b vm1',
  );
  await guest.close();
  for (const outcome of waiting) await succeeds(t, outcome);
  await succeeds(t, pcow('check vm1 vm2 vm3'));
});

test('a stream is received when the image is given back', async (t) => {
  const { directory, pcow, begun } = await place(t);
  await succeeds(t, pcow('create vm1 1M'));
  for (const name of ['one', 'two']) await succeeds(t, pcow(`snapshot vm1@${name}`));
  await succeeds(t, pcow('send vm1@one | pcow receive copy'));
  const other = await holder(directory, 'copy');
  const send = 'send vm1@two --from one';
  await fails(t, pcow(`${send} | pcow receive copy --wait 0.2`), 6, /open for writing/);
  const [received] = await begun(`pcow ${send} | pcow receive copy`);
  await other.close();
  t.regex(await succeeds(t, received!), /received copy@two/);
});

test.serial(
  'a mount waits for the one before it, of the directory or on the mountpoint',
  async (t) => {
    const { directory, pcow, begun } = await place(t);
    for (const name of ['images', 'others', 'mnt', 'mnt2']) await mkdir(path.join(directory, name));
    await succeeds(t, pcow('create images/vm1 1M'));
    await mounted(t, path.join(directory, 'images'), path.join(directory, 'mnt'));
    await fails(t, pcow('mount images mnt2 --wait 0.2'), 11, /mounted on \S+mnt already/);
    await fails(t, pcow('mount images none --wait 120'), 11, /does not exist/);
    t.teardown(() => pcow('umount mnt; pcow umount mnt2'));
    const waiting = await begun('pcow mount images mnt2', 'pcow mount others mnt');
    await succeeds(t, pcow('umount mnt'));
    for (const outcome of waiting) await succeeds(t, outcome);
    await readFile(path.join(directory, 'mnt2/vm1'));
    for (const name of ['mnt', 'mnt2']) await succeeds(t, pcow(`umount ${name}`));
  },
);
