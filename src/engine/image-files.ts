/** The image files of a directory. Nothing that looks through one may lose a file in silence because of its name. */
import { isUtf8 } from 'node:buffer';
import { readdir } from 'node:fs/promises';

import { word } from './quote.js';

const SUFFIX = '.pcow';

/** A file whose name is not UTF-8: Pcow can't name it, and neither can a mount. */
export interface NamelessFile {
  /** For people: bytes that are no UTF-8 as `\xff`. */
  shown: string;
  /** A pattern for a shell that it fits, with `?` in place of those bytes. */
  pattern: string;
  name: Buffer;
}

export interface ImageFiles {
  /** In order; hidden ones included. */
  names: string[];
  nameless: NamelessFile[];
}

export async function imageFilesIn(directory: string): Promise<ImageFiles> {
  const names = (await readdir(directory)).filter((name) => name.endsWith(SUFFIX)).sort();
  // What stands in a text for bytes that are none; it may be in a name itself.
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

/** What to do about one, as the end of a sentence. */
export function howToName(directory: string, file: NamelessFile): string {
  return `its name is not UTF-8, so that no command and no mount can use it: rename it (${givingItAName(directory, file)})`;
}

/** What to type. */
export function givingItAName(directory: string, { pattern }: NamelessFile): string {
  return `cd ${word(directory)}; mv ${pattern} NAME.pcow`;
}

/** Bytes beyond ASCII one by one: which of them belong to a character can't be told for sure. */
function namelessFile(name: Buffer): NamelessFile {
  const characters = [...name.toString('latin1')];
  const isPlain = (character: string) => character > ' ' && character < '\u007f';
  return {
    shown: characters.map((it) => (isPlain(it) ? it : `\\x${it.charCodeAt(0).toString(16).padStart(2, '0')}`)).join(''),
    pattern: `./${characters.map((it) => (/[\w@%+=:,.-]/.test(it) ? it : '?')).join('')}`,
    name,
  };
}
