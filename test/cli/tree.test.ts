/** cli/output/snapshot-tree.ts draws the snapshots of an image. */
import test from 'ava';
import type { SnapshotInfo } from '../../src/engine/index.js';
import { treeOf } from '../../cli/output/snapshot-tree.js';

function snapshot(name: string, parent: string | null, current = false): SnapshotInfo {
  const base = { name, id: 1, identity: '0000000000000001', parent };
  return {
    ...base,
    created: new Date(0),
    size: 65536,
    children: 0,
    automatic: false,
    current,
    data: 0,
  };
}

function draw(snapshots: SnapshotInfo[]): string[] {
  return treeOf(snapshots).map(({ branch, node }) => branch + (node?.name ?? '(active)'));
}

test('snapshots in a row stay in one column, however many', (t) => {
  t.deepEqual(draw([snapshot('a', null), snapshot('b', 'a', true)]), ['a', 'b', '(active)']);
  const many = Array.from({ length: 20_000 }, (_, i) =>
    snapshot(`s${i}`, i === 0 ? null : `s${i - 1}`, i === 19_999),
  );
  t.is(draw(many).length, 20_001);
  t.is(draw(many)[19_999], 's19999');
});

test('branches are drawn if several snapshots stand on one', (t) => {
  t.deepEqual(
    draw([
      snapshot('a', null, true),
      snapshot('b', 'a'),
      snapshot('c', 'b'),
      snapshot('d', 'a'),
      snapshot('e', 'd'),
    ]),
    ['a', '├─ b', '│  c', '├─ d', '│  e', '└─ (active)'],
  );
});

test('an image without snapshots is its active layer, and several roots are branches', (t) => {
  t.deepEqual(draw([]), ['(active)']);
  t.deepEqual(draw([snapshot('a', null), snapshot('b', null, true)]), [
    '├─ a',
    '└─ b',
    '   (active)',
  ]);
});
