/** src/images/mount-table.ts reads the kernel's list of mounts. */
import test from 'ava';
import { parseMountInfo } from '../../src/images/mount-table.js';

const LINE =
  '36 25 0:52 / /mnt rw,nosuid,nodev,relatime shared:1 - fuse.pcow /srv/images rw,user_id=0,group_id=0';

test('a Pcow mount shows its directory, its mountpoint and its connection', (t) => {
  t.deepEqual(parseMountInfo(`${LINE}\n`), [
    { directory: '/srv/images', mountpoint: '/mnt', readOnly: false, connection: 52 },
  ]);
});

test('other mounts are skipped, and so are malformed lines', (t) => {
  const others =
    '22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 1 0:5 / /proc rw - proc proc rw\n\nnonsense\n';
  t.deepEqual(parseMountInfo(others), []);
});

test('escaped characters of paths are decoded, also beside characters of several bytes', (t) => {
  const line = '36 25 0:52 / /mnt/a\\040b rw - fuse.pcow /srv/tab\\011back\\134slash/ü rw';
  const [mount] = parseMountInfo(line);
  t.is(mount?.mountpoint, '/mnt/a b');
  t.is(mount?.directory, '/srv/tab\tback\\slash/ü');
});

test('a read-only mount is recognised, and a read-only filesystem, too', (t) => {
  t.true(parseMountInfo('36 25 0:52 / /mnt ro - fuse.pcow /srv rw')[0]?.readOnly);
  t.true(parseMountInfo('36 25 0:52 / /mnt rw - fuse.pcow /srv ro')[0]?.readOnly);
});

test('a mount over another mount hides it', (t) => {
  t.deepEqual(parseMountInfo(`${LINE}\n40 36 0:60 / /mnt rw - tmpfs tmpfs rw\n`), []);
  const second = LINE.replace('0:52', '0:53').replace('/srv/images', '/srv/other');
  t.deepEqual(
    parseMountInfo(`${LINE}\n${second}\n`).map(({ directory }) => directory),
    ['/srv/other'],
  );
});
