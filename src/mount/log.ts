/**
 * What a mount reports to its operator: one line for each event, on stderr, which is the log file
 * of a daemon, or the journal. Debugging details go through `debug` (DEBUG=pcow:mount:*) instead.
 */
import { fstatSync } from 'node:fs';

import createDebug from 'debug';

/** The journal adds its own times. */
const journal = isJournal(process.env.JOURNAL_STREAM);

export function log(line: string): void {
  const time = journal ? '' : `${new Date().toISOString()} `;
  process.stderr.write(`${time}${oneLine(line)}\n`);
}

/**
 * Whether stderr is the stream that systemd has named in the environment: it may have been
 * redirected since.
 */
function isJournal(stream: string | undefined): boolean {
  if (stream === undefined) {
    return false;
  }
  const { dev, ino } = fstatSync(process.stderr.fd);
  return stream === `${dev}:${ino}`;
}

export function debugLog(noun: string): createDebug.Debugger {
  return createDebug(`pcow:mount:${noun}`);
}

/** Names in messages come from users: no name may forge a second line. */
function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\u2028\u2029]/gu, (character) =>
    JSON.stringify(character).slice(1, -1),
  );
}
