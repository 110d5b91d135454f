/** Each mistake has its own message, which names the mistake. */
import test, { type ExecutionContext } from 'ava';

import { Image, PcowError, type PcowErrorCode, snapshotTogether } from '../../src/engine/index.js';
import * as validate from '../../src/engine/validate.js';
import { scratchDirectory } from '../helpers/scratch.js';

function refused(
  t: ExecutionContext,
  check: () => void,
  message: RegExp,
  code: PcowErrorCode = 'PCOW_INVALID',
) {
  const error = t.throws(check, { instanceOf: PcowError, message });
  t.is(error.code, code);
}

test('sizes', (t) => {
  validate.checkSize(65536);
  validate.checkSize(2 ** 46);
  const no = (size: unknown, message: RegExp, code?: PcowErrorCode) => {
    refused(t, () => validate.checkSize(size), message, code);
  };
  no(0, /^the size is zero; the smallest image has 65536 bytes/);
  no(-4096, /^the size -4096 is negative$/);
  no(NaN, /^the size is not a number$/);
  no('1G', /^the size must be a number of bytes, not "1G"$/);
  no(null, /^the size must be a number of bytes, not null$/);
  no(10n, /^the size must be a number of bytes, not 10$/);
  no(
    2 ** 46 + 4096,
    /^the size 70368744181760 is over the limit of 70368744177664 bytes \(64 TiB\)$/,
    'PCOW_TOO_LARGE',
  );
  no(Infinity, /^the size Infinity is over the limit/, 'PCOW_TOO_LARGE');
  no(65536.5, /^the size 65536.5 is not a whole number of bytes$/);
  no(4096, /^the size 4096 is too small; the smallest image has 65536 bytes \(64 KiB\)$/);
  no(100_000, /^the size 100000 is not a multiple of 4096 bytes; the next one is 102400$/);
});

test('block sizes', (t) => {
  for (let size = 4096; size <= 2 << 20; size *= 2) validate.checkBlockSize(size);
  const no = (size: unknown, message: RegExp) => {
    refused(t, () => validate.checkBlockSize(size), message);
  };
  no(65535, /^the block size 65535 is not a power of two$/);
  no(0, /^the block size 0 is not a power of two$/);
  no(-65536, /^the block size -65536 is not a power of two$/);
  no(NaN, /^the block size NaN is not a power of two$/);
  no(2048, /^the block size 2048 is not between 4096 \(4 KiB\) and 2097152 \(2 MiB\)$/);
  no(4 << 20, /^the block size 4194304 is not between/);
  no('64K', /^the block size must be a number of bytes, not "64K"$/);
});

test('names of snapshots', (t) => {
  for (const name of ['a', 'v1.2-rc_3', '...', 'é'.repeat(127), 'x'.repeat(255), '雪', '--force']) {
    validate.checkSnapshotName(name);
  }
  const no = (name: unknown, message: RegExp) => {
    refused(t, () => validate.checkSnapshotName(name), message);
  };
  no('', /^a snapshot's name is empty$/);
  no('.', /^a snapshot can't be named "\."$/);
  no('..', /^a snapshot can't be named "\.\."$/);
  no('a/b', /contains "\/"; not allowed are/);
  no('a@b', /contains "@"/);
  no('a b', /contains white space/);
  no('a\nb', /^the snapshot name "a\\nb" contains a newline/);
  no('a\0b', /contains a NUL character/);
  no('a\u001b[31m', /contains a control character/);
  no('x'.repeat(300), /^the snapshot name "x{77}\.\.\." has 300 bytes; the limit is 255$/);
  no('é'.repeat(128), /has 256 bytes; the limit is 255$/);
  no('\ud800', /is not well-formed Unicode$/);
  no(7, /^a snapshot's name must be a string, not 7$/);
});

test('paths, offsets, lengths, buffers, layers', (t) => {
  refused(t, () => validate.checkPath('the path', ''), /^the path is empty$/);
  refused(
    t,
    () => validate.checkPath('the path', 'a\0b'),
    /^the path "a\\u0000b" contains a NUL character$/,
  );
  refused(
    t,
    () => validate.checkPath('the path', {}),
    /^the path must be a string, not a value of type object$/,
  );
  refused(t, () => validate.checkPath('the path', []), /^the path must be a string, not an array$/);
  refused(t, () => validate.checkOffset(-1), /^the offset -1 is negative$/);
  refused(
    t,
    () => validate.checkOffset(0.5),
    /^the offset must be a whole number of bytes, not 0.5$/,
  );
  refused(
    t,
    () => validate.checkOffset(2 ** 47),
    /^the offset .* is over the limit/,
    'PCOW_TOO_LARGE',
  );
  refused(t, () => validate.checkLength(-1), /^the length -1 is negative$/);
  refused(
    t,
    () => validate.checkLength('1'),
    /^the length must be a whole number of bytes, not "1"$/,
  );
  refused(
    t,
    () => validate.checkLength(2 ** 47),
    /^the length .* is over the limit/,
    'PCOW_TOO_LARGE',
  );
  refused(t, () => validate.checkBuffer([1]), /^the buffer must be a Uint8Array, not an array$/);
  refused(
    t,
    () => validate.checkBuffer(new DataView(new ArrayBuffer(1))),
    /^the buffer must be a Uint8Array/,
  );
  refused(t, () => validate.checkLayer(0), /^a layer's id must be a positive whole number, not 0$/);
});

test('misspelled and unknown options', (t) => {
  const known = ['blockSize', 'force'];
  const no = (options: unknown, message: RegExp) => {
    refused(t, () => validate.checkOptions('create', options, known), message);
  };
  no({ blocksize: 1 }, /^misspelled option "blocksize" of create: it should be "blockSize"$/);
  no({ size: 1 }, /^create has no option "size"; known are blockSize, force$/);
  no(null, /^create must be an object, not null$/);
  no([], /^create must be an object, not an array$/);
  refused(t, () => validate.checkFlag('force', 1), /^force must be true or false, not 1$/);
});

test('arguments that Image.create and the methods refuse before the engine is called', async (t) => {
  const file = `${await scratchDirectory(t)}/a.pcow`;
  const no = async (work: Promise<unknown>, message: RegExp) => {
    const error = await t.throwsAsync(work, { instanceOf: PcowError, message });
    t.is(error.code, 'PCOW_INVALID');
  };
  await no(
    Image.create(file, {}),
    /a\.pcow needs a size: only an image that stands on a base has a default$/,
  );
  await no(Image.create('', { size: 65536 }), /^the path of the new image is empty$/);
  const base = { path: 'b.pcow' };
  await no(
    Image.create(file, { base }),
    /^the base b\.pcow needs the name of a snapshot or the id of a layer, and not both$/,
  );
  await no(Image.create(file, { base: { ...base, snapshot: 's', layer: 1 } }), /and not both$/);
  await no(
    Image.create(file, { base: { ...base, layer: -1 } }),
    /^a layer's id must be a positive/,
  );
  await no(
    Image.open(file, { write: 'yes' as never }),
    /^the option "write" must be true or false, not "yes"$/,
  );
  await no(
    Image.open(file, { readonly: true } as never),
    /has no option "readonly"; known are write, baseRoot$/,
  );

  await Image.create(file, { size: 65536 });
  const image = await Image.open(file, { write: true });
  await no(image.write(Buffer.alloc(1), -1), /^the offset -1 is negative$/);
  await no(image.read('x' as never, 0), /^the buffer must be a Uint8Array/);
  await no(image.discard(0, -1), /^the length -1 is negative$/);
  await no(image.snapshot('a b'), /white space/);
  await no(image.rollback(''), /empty/);
  await no(
    image.delete('a', { signal: {} as never }),
    /^the option "signal" must be an AbortSignal$/,
  );
  await no(
    image.delete('a', { onProgress: 1 as never }),
    /^the option "onProgress" must be a function$/,
  );
  await no(image.delete('a', { onprogress: undefined } as never), /should be "onProgress"$/);
  await no(image.resize(1), /too small/);
  await no(image.freezeForClone('@'), /contains "@"/);
  t.throws(() => image.layerOf('..'), { instanceOf: PcowError, message: /can't be named/ });
  await no(snapshotTogether('s', []), /^a snapshot of several images needs at least one image$/);
  await no(
    snapshotTogether('s', [{} as never]),
    /^a snapshot of several images needs an array of open images$/,
  );
  await no(
    snapshotTogether('s', [image, image]),
    /^an image is listed twice for the snapshot "s"$/,
  );
  await no(snapshotTogether('/', [image]), /contains "\/"/);
  await image.close();
});
