/**
 * The last error, which the `status` control files show, and a control file shows to the process
 * that has written to it.
 */
import type { PcowErrorCode } from '../../engine/index.js';
import { codeOf, errnoNameOf, sentenceOf } from '../failure.js';

export interface LastError {
  time: Date;
  /** The command, for example "snapshot". null: a read, write or fsync of the flat file. */
  command: string | null;
  code: PcowErrorCode;
  /** For example "EEXIST". */
  errno: string;
  message: string;
}

export function lastErrorOf(command: string | null, error: unknown, time = new Date()): LastError {
  return {
    time,
    command,
    code: codeOf(error),
    errno: errnoNameOf(error),
    message: sentenceOf(error),
  };
}

/** The fields of `lastError` in docs/control-files.md. */
export function errorFields(error: LastError): object {
  return { ...error, time: error.time.toISOString() };
}
