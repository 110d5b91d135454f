/**
 * Writes docs/man/* from the help texts of the programs. test/cli/man.test.ts fails if they are out
 * of date.
 */
import { writeFile } from 'node:fs/promises';
import { manPages } from '../cli/output/man-pages.js';

const directory = new URL('../../docs/man/', import.meta.url);

for (const [file, page] of await manPages()) {
  await writeFile(new URL(file, directory), page);
  console.log(`docs/man/${file}`);
}
