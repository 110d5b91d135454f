/**
 * The image files of a directory. A program that searches a directory must not silently skip a file
 * because of its name.
 */
import { isUtf8 } from 'node:buffer';
import { readdir } from 'node:fs/promises';

import { word } from './quote.js';

const SUFFIX = '.pcow';

/** A file whose name is not UTF-8: neither Pcow nor a mount can use its name. */
export interface NamelessFile {
  /** For people: bytes that are not UTF-8 are shown as `\xff`. */
  shown: string;
  /** A shell pattern that matches the name, with `?` for those bytes. */
  pattern: string;
  name: Buffer;
}

export interface ImageFiles {
  /** Sorted; hidden files included. */
  names: string[];
  nameless: NamelessFile[];
}

export async function imageFilesIn(directory: string): Promise<ImageFiles> {
  const names = (await readdir(directory)).filter((name) => name.endsWith(SUFFIX)).sort();
  // This character replaces invalid bytes in a decoded name; but a name may also contain it.
  if (!names.some((name) => name.includes('\ufffd'))) return { names, nameless: [] };
  const files = (await readdir(directory, { encoding: 'buffer' })).filter((name) =>
    name.subarray(-SUFFIX.length).equals(Buffer.from(SUFFIX)),
  );
  return {
    names: files
      .filter((name) => isUtf8(name))
      .map(String)
      .sort(),
    nameless: files.filter((name) => !isUtf8(name)).map(namelessFile),
  };
}

/** The fix, as the end of a sentence. */
export function howToName(directory: string, file: NamelessFile): string {
  return `its name is not UTF-8, so that no command and no mount can use it: rename it (${givingItAName(directory, file)})`;
}

/** The shell command. */
export function givingItAName(directory: string, { pattern }: NamelessFile): string {
  return `cd ${word(directory)}; mv ${pattern} NAME.pcow`;
}

/**
 * Shows bytes beyond ASCII one by one, because it is not certain which of them form a character.
 */
function namelessFile(name: Buffer): NamelessFile {
  const characters = [...name.toString('latin1')];
  const isPlain = (character: string) => character > ' ' && character < '\u007f';
  return {
    shown: characters
      .map((it) => (isPlain(it) ? it : `\\x${it.charCodeAt(0).toString(16).padStart(2, '0')}`))
      .join(''),
    pattern: `./${characters.map((it) => (/[\w@%+=:,.-]/.test(it) ? it : '?')).join('')}`,
    name,
  };
}
