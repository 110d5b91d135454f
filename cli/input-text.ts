/** Text input of a command, from a file or standard input. */
import { readFile } from 'node:fs/promises';
import { Failure } from './output/errors.js';
import { quote } from '../src/engine/quote.js';

/** “-” means standard input. */
export async function textOf(file: string): Promise<string> {
  try {
    return await readFile(file === '-' ? '/dev/stdin' : file, 'utf8');
  } catch (error) {
    throw new Failure(
      'PCOW_NOT_FOUND',
      `${quote(file)} can't be read: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}
