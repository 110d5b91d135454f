/** The order that people expect: vm2 before vm10. */

/**
 * For Array.sort(): compares digits as numbers, the rest by characters. The same in every locale.
 */
export function naturalOrder(a: string, b: string): number {
  const [ours, theirs] = [partsOf(a), partsOf(b)];
  for (const [at, part] of ours.entries()) {
    const other = theirs[at];
    if (other === undefined) return 1;
    if (part === other) continue;
    return /^\d/.test(part) && /^\d/.test(other)
      ? byNumber(part, other)
      : byCharacters(part, other);
  }
  return ours.length - theirs.length;
}

function partsOf(name: string): string[] {
  return name.match(/\d+|\D+/g) ?? [];
}

/**
 * The digits may exceed the range of a number. Equal numbers with different leading zeros are
 * ordered by their length.
 */
function byNumber(a: string, b: string): number {
  const [x, y] = [a, b].map((text) => text.replace(/^0+/, '')) as [string, string];
  return x.length - y.length || byCharacters(x, y) || a.length - b.length;
}

function byCharacters(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}
