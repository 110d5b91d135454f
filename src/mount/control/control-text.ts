/**
 * The text that is written to a control file. One write is one command, and the text may be
 * anything.
 */
import { PcowError } from '../../engine/index.js';

/** Bytes. */
const MAX_LENGTH = 16 * 1024;

/**
 * Returns the text of a command without its trailing newline. Throws an error that says what is
 * wrong with the text.
 */
export function commandText(bytes: Uint8Array): string {
  if (bytes.length > MAX_LENGTH) {
    throw invalid(`the text has ${bytes.length} bytes; the limit is ${MAX_LENGTH}`);
  }
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw invalid('the text is not UTF-8');
  }
  if (text.endsWith('\n')) {
    text = text.slice(0, -1);
  }
  if (text.includes('\0')) {
    throw invalid('the text contains a NUL character');
  }
  if (text.includes('\n')) {
    throw invalid('the text contains a newline: write one command at a time');
  }
  return text;
}

/** The words of a command. There must be `least` to `most` of them. */
export function wordsOf(text: string, least: number, most: number, usage: string): string[] {
  const words = text.split(/[ \t]+/).filter((word) => word !== '');
  if (words.length < least || words.length > most) {
    throw invalid(
      `write ${usage}, not ${words.length === 0 ? 'nothing' : JSON.stringify(shortened(text))}`,
    );
  }
  return words;
}

function shortened(text: string): string {
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function invalid(message: string): PcowError {
  return new PcowError('PCOW_INVALID', message);
}
