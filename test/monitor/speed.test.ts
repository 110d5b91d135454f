/**
 * Once it was touched, monitored memory is as fast as the mapping of a plain file, measured in the
 * same run. The latencies of first touches are printed beside the bare round trip of userfaultfd;
 * they are not tested, because machines differ.
 */
import { execFile } from 'node:child_process';
import { truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import test from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB } from '../helpers/mount.js';
import { monitorPrefix } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';

const SIZE = 128;

test.serial('loads and stores in a monitored mapping are as fast as in a plain file', async (t) => {
  const mount = await imagesFor(t, {});
  await Image.create(mount.image('vm1'), { size: SIZE * MiB });
  const plain = path.join(mount.scratch, 'plain');
  await writeFile(plain, '');
  await truncate(plain, SIZE * MiB);
  await mount.mount();
  const tool = await program('memory-speed', mount.scratch);
  const [command = '', ...words] = [
    ...monitorPrefix(),
    tool,
    mount.file('vm1'),
    plain,
    String(SIZE),
  ];
  const { stdout } = await promisify(execFile)(command, words);
  const found = JSON.parse(stdout) as Record<
    'speed' | 'expansionUs' | 'plainTouchUs' | 'roundTripUs',
    number
  >;
  t.log(
    `speed ${found.speed} of a plain file's; first touch (p50) ${found.expansionUs} µs, ` +
      `plain file ${found.plainTouchUs} µs, bare userfaultfd round trip ${found.roundTripUs} µs`,
  );
  t.true(
    found.speed > 0.7,
    `once touched, the mapping has ${found.speed} of the speed of a plain file's`,
  );
});
