/** The snapshots of an image as a tree of lines. */
import type { SnapshotInfo } from '../../src/engine/index.js';

export interface TreeLine {
  /** The lines before the name. */
  branch: string;
  /** null: the active layer. */
  node: SnapshotInfo | null;
}

/**
 * Every snapshot stands on the one above it in its column. If several stand on one, they branch,
 * oldest first. So a thousand snapshots in a row do not become a staircase. The active layer is the
 * last child of its parent.
 */
export function treeOf(snapshots: SnapshotInfo[]): TreeLine[] {
  const children = new Map<string | null, (SnapshotInfo | null)[]>();
  const add = (parent: string | null, node: SnapshotInfo | null) => {
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [node]);
    else siblings.push(node);
  };
  for (const snapshot of snapshots) add(snapshot.parent, snapshot);
  add(snapshots.find((snapshot) => snapshot.current)?.name ?? null, null);

  const lines: TreeLine[] = [];
  // Its own stack, because a chain may be longer than the program's stack is deep.
  const waiting: (TreeLine & { below: string })[] = [];
  const push = (parent: string | null, below: string) => {
    const nodes = children.get(parent) ?? [];
    const [only] = nodes;
    if (nodes.length === 1 && only !== undefined) {
      waiting.push({ node: only, branch: below, below });
      return;
    }
    for (const [i, node] of [...nodes.entries()].reverse()) {
      const last = i === nodes.length - 1;
      const branch = below + (last ? '└─ ' : '├─ ');
      waiting.push({ node, branch, below: below + (last ? '   ' : '│  ') });
    }
  };
  push(null, '');
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    lines.push({ branch: next.branch, node: next.node });
    if (next.node !== null) push(next.node.name, next.below);
  }
  return lines;
}
