/** Names of snapshots that Pcow takes by itself. */

/**
 * For a snapshot on which a clone stands. The time makes it unique, because a base may be cloned
 * under the same name repeatedly.
 */
export function automaticName(now = new Date()): string {
  return `auto-${now.toISOString().replace(/[:.]/g, '-')}`;
}
