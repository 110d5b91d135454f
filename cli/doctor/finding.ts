/** A finding of the doctor: one sentence about one thing, and how to fix it. */

export type Level =
  /** No problem. */
  | 'ok'
  /** It works, but not as well as it could, or not in every case. */
  | 'warning'
  /** It will not work, or data is at risk. */
  | 'problem';

export interface Finding {
  /** For programs; never renamed. For example "userfaultfd" or "discard-data". */
  check: string;
  level: Level;
  message: string;
  /** A command or an option; null if there is nothing to fix. */
  mend: string | null;
}

export function ok(check: string, message: string): Finding {
  return { check, level: 'ok', message, mend: null };
}

export function warning(check: string, message: string, mend: string | null): Finding {
  return { check, level: 'warning', message, mend };
}

export function problem(check: string, message: string, mend: string): Finding {
  return { check, level: 'problem', message, mend };
}
