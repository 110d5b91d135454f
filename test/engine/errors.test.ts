import { readFile } from 'node:fs/promises';
import { constants } from 'node:os';
import path from 'node:path';

import test from 'ava';

import { ROOT } from '../../src/engine/built.js';
import {
  codeOfAnswer,
  fromNative,
  isPcowError,
  PcowError,
  type PcowErrorCode,
  systemCodeOf,
} from '../../src/engine/errors.js';

const ERRNO_NAMES: Record<PcowErrorCode, keyof typeof constants.errno> = {
  PCOW_INVALID: 'EINVAL',
  PCOW_EXISTS: 'EEXIST',
  PCOW_NOT_FOUND: 'ENOENT',
  PCOW_LOCKED: 'EBUSY',
  PCOW_BUSY: 'EBUSY',
  PCOW_IN_USE: 'EBUSY',
  PCOW_NOT_AN_IMAGE: 'EINVAL',
  PCOW_UNSUPPORTED: 'EOPNOTSUPP',
  PCOW_CORRUPT: 'EIO',
  PCOW_IO: 'EIO',
  PCOW_NO_SPACE: 'ENOSPC',
  PCOW_READ_ONLY: 'EROFS',
  PCOW_PERMISSION: 'EACCES',
  PCOW_TOO_LARGE: 'EFBIG',
  PCOW_LIMIT: 'EMLINK',
  PCOW_BASE_MISSING: 'ENOENT',
  PCOW_BASE_CHANGED: 'ESTALE',
  PCOW_BASE_LOOP: 'ELOOP',
  PCOW_BASE_OUTSIDE: 'EPERM',
  PCOW_CANCELLED: 'ECANCELED',
  PCOW_CLOSED: 'EBADF',
  PCOW_NO_MEMORY: 'ENOMEM',
  PCOW_REMOTE: 'EAGAIN',
  PCOW_MOUNT: 'EIO',
  PCOW_USAGE: 'EINVAL',
};

test('every code has the errno that a system call would give', (t) => {
  for (const [code, name] of Object.entries(ERRNO_NAMES)) {
    const error = new PcowError(code as PcowErrorCode, 'it failed');
    t.is(error.errno, constants.errno[name], code);
    t.is(error.errnoName, name, code);
  }
});

test('a better errno and a cause are kept', (t) => {
  const cause = new Error('deep down');
  const error = new PcowError('PCOW_IO', 'it failed', { errno: constants.errno.ENXIO, cause });
  t.is(error.errnoName, 'ENXIO');
  t.is(error.cause, cause);
  t.is(error.name, 'PcowError');
});

test('isPcowError checks the class and the codes', (t) => {
  const error: unknown = new PcowError('PCOW_LOCKED', 'locked');
  t.true(isPcowError(error));
  t.true(isPcowError(error, 'PCOW_BUSY', 'PCOW_LOCKED'));
  t.false(isPcowError(error, 'PCOW_BUSY'));
  t.false(isPcowError(Object.assign(new Error('no'), { code: 'PCOW_LOCKED' })));
});

test("fromNative translates the engine's errors and nothing else", (t) => {
  const translated = fromNative(
    Object.assign(new Error('no room'), { code: 'PCOW_NO_SPACE', errno: 122 }),
  );
  t.true(isPcowError(translated, 'PCOW_NO_SPACE'));
  t.is((translated as PcowError).errnoName, 'EDQUOT');
  const others = [
    new TypeError('a bug'),
    Object.assign(new Error('node'), { code: 'ENOENT' }),
    'text',
    undefined,
  ];
  for (const other of others) t.is(fromNative(other), other);
});

test('a failed system call has the same code here and in the engine', async (t) => {
  const source = await readFile(path.join(ROOT, 'native/engine/error.cc'), 'utf8');
  const [, table = ''] = /^Code code_of_errno\(int err\) \{\n([^]*?)^\}/m.exec(source) ?? [];
  const codes = new Map<string, string>();
  for (const [, cases = '', code = ''] of table.matchAll(
    /((?:\s*case E\w+:)+) return Code::k(\w+);/g,
  )) {
    for (const [, name = ''] of cases.matchAll(/case (E\w+):/g)) {
      codes.set(
        name,
        `PCOW${code.replace(/[A-Z]/g, (letter) => `_${letter.toUpperCase()}`).toUpperCase()}`,
      );
    }
  }
  t.true(codes.size > 10);
  for (const [name, number] of Object.entries(constants.errno)) {
    if (name === 'ENOTSUP') continue; // EOPNOTSUPP by another name
    t.is(systemCodeOf(number), (codes.get(name) ?? 'PCOW_IO') as PcowErrorCode, name);
  }
});

test('a mount or a monitor that answers with an errno means the code that it stands for', (t) => {
  const { EBUSY, EINVAL, EIO, ELOOP, EMLINK, ENOSPC, ESTALE, ECANCELED } = constants.errno;
  t.is(codeOfAnswer(EBUSY), 'PCOW_BUSY');
  t.is(codeOfAnswer(EINVAL), 'PCOW_INVALID');
  t.is(codeOfAnswer(EIO), 'PCOW_IO');
  t.is(codeOfAnswer(ELOOP), 'PCOW_BASE_LOOP');
  t.is(codeOfAnswer(EMLINK), 'PCOW_LIMIT');
  t.is(codeOfAnswer(ENOSPC), 'PCOW_NO_SPACE');
  t.is(codeOfAnswer(ESTALE), 'PCOW_BASE_CHANGED');
  t.is(codeOfAnswer(ECANCELED), 'PCOW_CANCELLED');
});
