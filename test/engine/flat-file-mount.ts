/**
 * The smallest mount with the native operations: /disk (the active layer), /at (the snapshot named
 * "at") and /plain, which goes through JavaScript. A child process of native-operations.test.ts,
 * which controls it over IPC.
 */
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import {
  closeHandle,
  FIRST_NATIVE_HANDLE,
  interceptions,
  nativeRequests,
  openHandle,
  requireFuse,
} from '../../src/engine/native-operations.js';

type Callback = (error: number, ...results: unknown[]) => void;
type FuseClass = new (
  mountPoint: string,
  handlers: Record<string, (...args: never[]) => void>,
  options: object,
) => { mount(callback: (error: Error | null) => void): void };

const [directory = '', mountPoint = ''] = process.argv.slice(2);
const Fuse = requireFuse(directory) as FuseClass;
const image = await Image.open(path.join(directory, 'disk.pcow'), { write: true });
const PLAIN = Buffer.from('through JavaScript');
let plainReads = 0;

function stat(file: string) {
  const time = new Date(0);
  const common = { atime: time, mtime: time, ctime: time, nlink: 1, uid: 0, gid: 0 };
  if (file === '/') return { ...common, mode: 0o40755, size: 0 };
  if (file === '/plain') return { ...common, mode: 0o100644, size: PLAIN.length };
  return { ...common, mode: 0o100644, size: image.info().size };
}

const handlers = {
  readdir: (_file: string, callback: Callback) => {
    callback(0, ['disk', 'at', 'plain']);
  },
  getattr: (file: string, callback: Callback) => {
    if (['/', '/disk', '/at', '/plain'].includes(file)) callback(0, stat(file));
    else callback(-2);
  },
  open: (file: string, _flags: number, callback: Callback) => {
    if (file === '/plain') callback(0, 7);
    else
      callback(
        0,
        openHandle(
          image,
          file === '/at' ? { snapshot: 'at', writable: false } : { writable: true },
        ),
      );
  },
  release: (_file: string, fh: number, callback: Callback) => {
    if (closeHandle(fh) !== fh >= FIRST_NATIVE_HANDLE) process.exit(3);
    callback(0);
  },
  read: (
    _file: string,
    _fh: number,
    buffer: Buffer,
    length: number,
    offset: number,
    callback: Callback,
  ) => {
    ++plainReads;
    callback(PLAIN.copy(buffer, 0, offset, offset + length));
  },
  write: (...args: unknown[]) => {
    (args.at(-1) as Callback)(-5);
  },
  fsync: (...args: unknown[]) => {
    (args.at(-1) as Callback)(-5);
  },
  statfs: (_file: string, callback: Callback) => {
    callback(-5);
  },
  utimens: (...args: unknown[]) => {
    (args.at(-1) as Callback)(-5);
  },
};

const commands: Record<string, () => unknown> = {
  counts: () => ({ interceptions: interceptions(), requests: nativeRequests(), plainReads }),
  info: () => image.info(),
  snapshot: () => image.snapshot('at'),
  rollback: () => image.rollback('at'),
  close: () => image.close(),
};

// The test has ended, however it ended.
process.on('disconnect', () => process.exit());
process.on('message', (command: string) => {
  void Promise.resolve(commands[command]?.()).then((result) => process.send?.({ result }));
});

new Fuse(mountPoint, handlers, {
  fsname: 'pcow-test',
  subtype: 'pcow,big_writes',
  timeout: false,
  attrTimeout: '0',
}).mount((error) => {
  process.send?.({ result: error ? error.message : 'mounted' });
});
