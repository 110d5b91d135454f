/** The commands that make lazy images, and what others say about them. */
import { mkdir, rename } from 'node:fs/promises';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Image } from '../../src/engine/index.js';
import { pushImage } from '../../src/registry/index.js';
import { scratchDirectory } from '../helpers/scratch.js';
import { isSame, MiB, working } from '../stream/images.js';
import { fails, pcowIn, succeeds } from './outcome.js';

/** `golden.pcow` with two snapshots, both pushed to a layout; and an empty directory `images`. */
async function bench(t: ExecutionContext) {
  const directory = await scratchDirectory(t);
  const golden = path.join(directory, 'golden.pcow');
  await Image.create(golden, { size: 16 * MiB });
  const digests = await working(golden, async (image) => {
    const pushed: string[] = [];
    for (const [at, name] of ['v1', 'v2'].entries()) {
      await image.write(Buffer.alloc(2 * MiB, at + 1), at * 4 * MiB);
      await image.snapshot(name);
      pushed.push((await pushImage(image, name, `oci:${directory}/golden:${name}`)).digest);
    }
    return pushed;
  });
  await mkdir(path.join(directory, 'images'));
  return { directory, golden, digests, pcow: pcowIn(directory) };
}

test('create --base makes a lazy base beside the new image, and uses it again', async (t) => {
  const { directory, golden, digests, pcow } = await bench(t);
  const made = await succeeds(t, pcow('create', 'images/vm1', '--base', 'oci:golden:v1'));
  t.regex(made, /made .*images\/golden\.pcow.*\n.*created .*vm1\.pcow.*on oci:golden:v1/);
  const again = await succeeds(t, pcow('create', 'images/vm2', '--base', 'oci:golden:v1'));
  t.notRegex(again, /made/);
  const base = async (name: string) => {
    const info = JSON.parse(await succeeds(t, pcow('info', `images/${name}`, '--json'))) as {
      base: { path: string; snapshot: string };
    };
    return `${info.base.path}@${info.base.snapshot}`;
  };
  t.deepEqual([await base('vm1'), await base('vm2')], ['golden.pcow@v1', 'golden.pcow@v1']);
  // Another image under that name: the base has a name of its own.
  await succeeds(t, pcow('create', 'images/vm3', '--base', 'oci:golden:v2'));
  const other = `golden-${digests[1]!.slice(7, 19)}`;
  t.is(await base('vm3'), `${other}.pcow@v2`);
  // With a digest, a base that is there needs no registry.
  await rename(path.join(directory, 'golden'), path.join(directory, 'away'));
  await succeeds(t, pcow('create', 'images/vm4', '--base', `oci:golden@${digests[1]!}`));
  t.is(await base('vm4'), `${other}.pcow@v2`);
  await rename(path.join(directory, 'away'), path.join(directory, 'golden'));
  // A complete one is used again, too.
  t.regex(await succeeds(t, pcow('prefetch', 'images/vm1')), /golden is complete: 2 MiB fetched/);
  t.regex(await succeeds(t, pcow('prefetch', 'images/vm1')), /vm1 lacks nothing/);
  await succeeds(t, pcow('create', 'images/vm5', '--base', 'oci:golden:v1'));
  t.is(await base('vm5'), 'golden.pcow@v1');
  await isSame(t, [golden, 'v1'], [path.join(directory, 'images/vm5.pcow'), null]);
});

test('what is said of a lazy image, and by commands that need more of it', async (t) => {
  const { directory, golden, digests, pcow } = await bench(t);
  const pulled = JSON.parse(
    await succeeds(t, pcow('pull', '--lazy', 'oci:golden:v2', 'lazy', '--json')),
  ) as object;
  t.like(pulled, { digest: digests[1], snapshot: 'v2', layers: 2, made: true, remote: 4 * MiB });
  const reference = `oci:${directory}/golden:v2@${digests[1]!}`;
  const told = await succeeds(t, pcow('info', 'lazy'));
  t.true(told.includes(`4 MiB are still in ${reference}`), told);
  t.regex(await succeeds(t, pcow('list', '.')), /lazy .* 4 MiB to fetch/);
  t.regex(await succeeds(t, pcow('check', 'lazy')), /4 MiB have not been fetched yet/);
  await succeeds(t, pcow('map', 'lazy'));
  for (const words of [
    ['convert', 'lazy', 'lazy.raw'],
    ['push', 'lazy@v2', 'oci:other:v2'],
    ['compare', 'lazy', 'golden'],
  ]) {
    const where = /they are still in oci:.*golden:v2@sha256:/;
    await fails(t, pcow(...words), 16, where, /pcow prefetch .*lazy\.pcow/);
  }
  const twice = pcow('pull', '--lazy', 'oci:golden:v2', 'lazy');
  await fails(t, twice, 5, /only a new image can be lazy/);
  await fails(t, pcow('pull', '--lazy', '--force', 'oci:golden:v2', 'new'), 2);
  const fetched = JSON.parse(await succeeds(t, pcow('prefetch', 'lazy', '--json'))) as object;
  t.like(fetched, { image: 'lazy', fetched: [{ name: 'lazy', remote: 4 * MiB }] });
  for (const name of ['v1', 'v2'])
    await isSame(t, [golden, name], [path.join(directory, 'lazy.pcow'), name]);
});
