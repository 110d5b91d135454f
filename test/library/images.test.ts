/**
 * What the library does with images wherever they are: at rest, in a mount, or in another format.
 * (docs/library.md has the first steps.)
 */
import { readFile, rename, symlink, unlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import {
  addChecksums,
  commitImage,
  compactImage,
  compareContents,
  convertIntoFile,
  convertIntoImage,
  convertToBytes,
  convertToFile,
  convertToImage,
  deleteSnapshot,
  findImage,
  findSnapshotTarget,
  findTarget,
  flattenImage,
  Image,
  isPcowError,
  listImages,
  lookAt,
  makeImage,
  measure,
  newFile,
  newImage,
  openContents,
  orderOfRemoval,
  rebaseImage,
  rebaseUnsafely,
  receptionOf,
  removeChecksums,
  removeImage,
  renameImage,
  renameSnapshot,
  resizeImage,
  rollbackImage,
  snapshotImages,
  stateOf,
} from '../../src/index.js';
import { fillBeginning, firstByte } from '../helpers/first-byte.js';
import { MiB, mountedImages } from '../helpers/mount.js';
import { scratchDirectory } from '../helpers/scratch.js';

/** Every change of an image; `at`: the path of an image by its name. */
async function everyChange(
  at: (name: string) => string,
  fileOf: (name: string) => string,
): Promise<string[]> {
  await makeImage(await newImage(at('base')), { size: MiB });
  const base = await findImage(at('base'));
  await snapshotImages('one', [base]);
  await makeImage(await newImage(at('vm1')), { base: await findTarget(at('base@one')) });
  const vm1 = await findImage(at('vm1'));
  await resizeImage(vm1, 2 * MiB);
  await resizeImage(vm1, MiB, { shrink: true });
  await rebaseImage(vm1, { image: base, snapshot: null });
  await commitImage(vm1, { name: 'patched' });
  await flattenImage(vm1);
  await snapshotImages('both', [base, vm1]);
  await addChecksums(vm1);
  await removeChecksums(vm1);
  await rollbackImage(vm1, 'both');
  await renameSnapshot(vm1, 'both', 'each');
  const reports: number[] = [];
  await deleteSnapshot(vm1, 'each', { onProgress: (done) => reports.push(done) });
  await compactImage(vm1);
  await renameImage(vm1, await newImage(at('vm2')));
  const vm2 = await findImage(at('vm2'));
  const names = (await listImages(path.dirname(fileOf('base')))).images.map(({ name }) => name);
  for (const image of await orderOfRemoval([base, vm2])) await removeImage(image);
  return names;
}

test('every change of images at rest', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  t.deepEqual(await everyChange(at, at), ['base', 'vm2']);
  t.deepEqual((await listImages(directory)).images, []);
});

test.serial('every change of images in a mount', async (t) => {
  const mount = await mountedImages(t, {});
  t.deepEqual(
    await everyChange(
      (name) => mount.file(name),
      (name) => mount.image(name),
    ),
    ['base', 'vm2'],
  );
  const found = await listImages(mount.point);
  t.is(found.mount?.mountpoint, mount.point);
  t.deepEqual(found.images, []);
  if (found.mount !== null) t.deepEqual((await lookAt(found.mount)).images, []);
});

test('what was found stays what was meant, whatever its name leads to later', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  for (const [name, byte] of [
    ['right', 1],
    ['wrong', 2],
  ] as const) {
    await makeImage(await newImage(at(name)), { size: MiB });
    await fillBeginning(at(`${name}.pcow`), byte);
  }
  await symlink('right.pcow', at('current.pcow'));
  const found = await findTarget(at('current'));
  await unlink(at('current.pcow'));
  await symlink('wrong.pcow', at('current.pcow'));
  const made = await makeImage(await newImage(at('clone')), { base: found });
  t.is(made.base?.resolved, at('right.pcow'));
  const target = await newImage(at('copy'));
  await convertToImage({ source: found, base: found }, target);
  t.is(await firstByte(target.file), 1);
  t.is((await Image.baseOf(target.file))?.path, 'right.pcow');
  const contents = await openContents(found);
  const buffer = Buffer.alloc(1);
  await contents.read(buffer, 0);
  await contents.close();
  t.is(buffer[0], 1);
});

test('converting, comparing and measuring, with progress, and stopped by a signal', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  await writeFile(at('raw'), Buffer.alloc(MiB, 7));
  const source = await findTarget(at('raw'));
  let last = 0;
  const onProgress = (done: number, total: number) => (last = done / total);
  const image = await newImage(at('vm1'));
  t.like(await convertToImage({ source, from: 'raw' }, image, { onProgress }), {
    size: MiB,
    snapshots: [],
  });
  t.is(last, 1);
  const vm1 = await findTarget(at('vm1'));
  const file = await newFile(at('copy'));
  t.is((await convertToFile({ source: vm1 }, file, 'raw')).target, file);
  t.deepEqual(await readFile(file), await readFile(at('raw')));
  const pieces: Buffer[] = [];
  for await (const piece of convertToBytes({ source: vm1 })) pieces.push(piece);
  t.deepEqual(Buffer.concat(pieces), await readFile(at('raw')));
  await writeFile(file, Buffer.alloc(MiB, 1));
  await convertIntoFile({ source: vm1 }, file, 'raw');
  await convertIntoImage({ source, from: 'raw' }, image);

  const [left, right] = [
    await openContents(vm1),
    await openContents(await findTarget(file), { format: 'raw' }),
  ];
  t.deepEqual(await compareContents(left, right, { strict: false }), { same: true });
  t.true((await measure(right.size, 65536, right)).required > MiB);
  await left.close();
  await right.close();

  const vm2 = await newImage(at('vm2'));
  const stopped = { signal: AbortSignal.abort('enough') };
  for (const work of [
    () => convertToImage({ source: vm1 }, vm2, stopped),
    () => convertToFile({ source: vm1 }, at('other'), 'raw', stopped),
    () => compactImage(vm1.image, stopped),
  ]) {
    const error: unknown = await work().catch((it: unknown) => it);
    t.true(isPcowError(error, 'PCOW_CANCELLED'));
    t.like(error, { cause: 'enough' });
  }
  await t.throwsAsync(findImage(at('vm2')), { code: 'PCOW_NOT_FOUND' });
});

test('what state an image is in, and a base that was moved', async (t) => {
  const directory = await scratchDirectory(t);
  const at = (name: string) => path.join(directory, name);
  await makeImage(await newImage(at('base')), { size: MiB });
  await makeImage(await newImage(at('vm1')), { base: await findTarget(at('base')) });
  await rename(at('base.pcow'), at('moved.pcow'));
  await t.throwsAsync(Image.open(at('vm1.pcow')), { code: 'PCOW_BASE_MISSING' });
  await rebaseUnsafely(await findImage(at('vm1')), await findTarget(at('moved')));
  const image = await Image.open(at('vm1.pcow'));
  const info = image.info();
  await image.close();
  t.is(stateOf(info), 'closed');
  t.is(await receptionOf(info), null);
  await t.throwsAsync(findSnapshotTarget(at('vm1')), { code: 'PCOW_USAGE' });
});
