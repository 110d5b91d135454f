/** Names that Pcow gives to snapshots of its own accord. */

/** For a snapshot that a clone stands on: unique by its time, as a base may be cloned under one name again and again. */
export function automaticName(now = new Date()): string {
  return `auto-${now.toISOString().replace(/[:.]/g, '-')}`;
}
