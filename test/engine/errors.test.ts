import { constants } from 'node:os';

import test from 'ava';

import { fromNative, isPcowError, PcowError, type PcowErrorCode } from '../../src/engine/errors.js';

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

test('isPcowError looks at the class and the codes', (t) => {
  const error: unknown = new PcowError('PCOW_LOCKED', 'locked');
  t.true(isPcowError(error));
  t.true(isPcowError(error, 'PCOW_BUSY', 'PCOW_LOCKED'));
  t.false(isPcowError(error, 'PCOW_BUSY'));
  t.false(isPcowError(Object.assign(new Error('no'), { code: 'PCOW_LOCKED' })));
});

test("fromNative translates the engine's errors and nothing else", (t) => {
  const translated = fromNative(Object.assign(new Error('no room'), { code: 'PCOW_NO_SPACE', errno: 122 }));
  t.true(isPcowError(translated, 'PCOW_NO_SPACE'));
  t.is((translated as PcowError).errnoName, 'EDQUOT');
  const others = [new TypeError('a bug'), Object.assign(new Error('node'), { code: 'ENOENT' }), 'text', undefined];
  for (const other of others) t.is(fromNative(other), other);
});
