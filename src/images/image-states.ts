/**
 * The states of an image in a mount: "ok", or what is wrong. docs/control-files.md ("status") has
 * the list.
 */
import type { PcowErrorCode } from '../engine/index.js';

/** By the code of the error with which opening the image fails. */
const STATE_OF_CODE = {
  PCOW_NOT_AN_IMAGE: 'not an image',
  PCOW_CORRUPT: 'damaged',
  PCOW_UNSUPPORTED: 'unsupported',
  PCOW_BASE_MISSING: 'base missing',
  PCOW_BASE_CHANGED: 'base changed',
  PCOW_BASE_LOOP: 'base loop',
  PCOW_BASE_OUTSIDE: 'base outside of the directory',
} as const satisfies Partial<Record<PcowErrorCode, string>>;

type CodeOfState = keyof typeof STATE_OF_CODE;

/** 'unreadable': opening the image fails with any other code. */
export type ImageState =
  'ok' | (typeof STATE_OF_CODE)[CodeOfState] | 'outside of the directory' | 'unreadable';

/** The state of an image if opening it fails with this code. */
export function stateOfCode(code: PcowErrorCode): ImageState {
  return code in STATE_OF_CODE ? STATE_OF_CODE[code as CodeOfState] : 'unreadable';
}

/** The code for an operation on an image in this state; null for "ok". */
export function codeOfState(state: string): PcowErrorCode | null {
  const found = (Object.keys(STATE_OF_CODE) as CodeOfState[]).find(
    (code) => STATE_OF_CODE[code] === state,
  );
  if (found !== undefined) return found;
  return state === 'outside of the directory'
    ? 'PCOW_BASE_OUTSIDE'
    : state === 'unreadable'
      ? 'PCOW_IO'
      : null;
}
