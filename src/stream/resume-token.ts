/**
 * The receiver's state, for `pcow send --resume`: one word without characters that are special to a
 * shell.
 */
import { crc32c, PcowError } from '../engine/index.js';

export interface ResumeToken {
  /** Identities. */
  from: string | null;
  to: string;
  /** Bytes of the image: everything before this offset has arrived. */
  offset: number;
}

export function formatToken({ from, to, offset }: ResumeToken): string {
  const text = `1-${from ?? 'nothing'}-${to}-${offset.toString(16)}`;
  return `${text}-${crc32c(Buffer.from(text)).toString(16).padStart(8, '0')}`;
}

export function parseToken(token: string): ResumeToken {
  const match = /^(1-(nothing|[0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{1,12}))-([0-9a-f]{8})$/.exec(
    token.trim(),
  );
  const [, text = '', from = '', to = '', offset = '', checksum = ''] = match ?? [];
  if (match === null || crc32c(Buffer.from(text)) !== parseInt(checksum, 16)) {
    throw new PcowError(
      'PCOW_INVALID',
      'that is not a resume token: use the one that “pcow receive --resume-token IMAGE” prints',
    );
  }
  return { from: from === 'nothing' ? null : from, to, offset: parseInt(offset, 16) };
}
