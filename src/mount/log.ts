/**
 * What a mount tells its operator: one line for each event, on stderr, which is the log file of a daemon. Details for
 * debugging go through `debug` (DEBUG=pcow:mount:*) instead.
 */
import createDebug from 'debug';

export function log(line: string): void {
  process.stderr.write(`${new Date().toISOString()} ${oneLine(line)}\n`);
}

export function debugLog(noun: string): createDebug.Debugger {
  return createDebug(`pcow:mount:${noun}`);
}

/** Names in messages come from anybody: none of them may forge a second line. */
function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\u2028\u2029]/gu, (character) => JSON.stringify(character).slice(1, -1));
}
