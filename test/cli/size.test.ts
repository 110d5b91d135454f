/** src/images/sizes.ts: the sizes that people type, and the messages if a size is wrong. */
import test, { type ExecutionContext } from 'ava';
import { PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import {
  formatSize,
  parseBlockSize,
  parseMemory,
  parseSize,
  sizeArgument,
} from '../../src/images/sizes.js';

test('sizes are bytes, or numbers with a power of 1024', (t) => {
  t.is(parseSize('65536'), 65536);
  t.is(parseSize('64K'), 65536);
  t.is(parseSize('64k'), 65536);
  t.is(parseSize('64KiB'), 65536);
  t.is(parseSize('10G'), 10 * 2 ** 30);
  t.is(parseSize('1.5T'), 1.5 * 2 ** 40);
  t.is(parseSize('64T'), 2 ** 46);
});

function refuses(
  t: ExecutionContext,
  read: (text: string) => number,
  text: string,
  message: RegExp,
  hint?: RegExp,
  code: PcowErrorCode = 'PCOW_INVALID',
) {
  const error = t.throws(() => read(text), { instanceOf: PcowError });
  t.is(error.code, code, text);
  t.regex(error.message, message);
  if (hint) t.regex(error.next ?? '', hint);
}

test('each wrong size gets its own sentence', (t) => {
  refuses(t, parseSize, '0', /the size is zero/);
  refuses(t, parseSize, '-5G', /the size -5G is negative/);
  refuses(t, parseSize, 'ten', /"ten" is not a size/, /64K, 10G/);
  refuses(t, parseSize, '', /"" is not a size/);
  refuses(t, parseSize, '1e9', /"1e9" is not a size/);
  refuses(t, parseSize, 'NaN', /"NaN" is not a size/);
  refuses(t, parseSize, '10X', /"10X" is not a size/);
  refuses(t, parseSize, '1\n2', /"1\\n2" is not a size/);
  refuses(t, parseSize, '65T', /over the limit of .*64 TiB/, undefined, 'PCOW_TOO_LARGE');
  refuses(t, parseSize, '9'.repeat(400), /over the limit/, undefined, 'PCOW_TOO_LARGE');
  refuses(t, parseSize, '4K', /4096 is too small/);
  refuses(t, parseSize, '1.3K', /not a whole number of bytes/);
  refuses(t, parseSize, '65537', /not a multiple of 4 KiB/, /nearest sizes are 64K and 68K/);
  refuses(t, parseSize, '1000000', /not a multiple of 4 KiB/, /nearest sizes are 976K and 980K/);
});

test('each wrong block size gets its own sentence', (t) => {
  t.is(parseBlockSize('64K'), 65536);
  t.is(parseBlockSize('2M'), 2 ** 21);
  refuses(t, parseBlockSize, '48K', /not a power of two/, /nearest block sizes are 32K and 64K/);
  refuses(t, parseBlockSize, '2K', /not between 4096/);
  refuses(t, parseBlockSize, '4M', /not between 4096/);
  refuses(t, parseBlockSize, '0', /the block size is zero/);
  refuses(t, parseBlockSize, 'big', /"big" is not a block size/);
});

test('memory is in whole MiB', (t) => {
  t.is(parseMemory('4G'), 4 * 2 ** 30);
  refuses(t, parseMemory, '1000', /not a multiple of 1 MiB/);
});

test('sizes are shown in short form, and sizes in suggested commands are exact', (t) => {
  t.is(formatSize(1), '1 byte');
  t.is(formatSize(512), '512 bytes');
  t.is(formatSize(65536), '64 KiB');
  t.is(formatSize(1.5 * 2 ** 40), '1.5 TiB');
  t.is(formatSize(10 * 2 ** 30 + 1), '10 GiB');
  for (const bytes of [65536, 2 ** 30, 1.5 * 2 ** 40, 65536 + 4096, 2 ** 46]) {
    t.is(parseSize(sizeArgument(bytes)), bytes);
  }
});
