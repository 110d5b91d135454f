/** docs/man is made from the help texts; this fails if only one of them was changed. */
import { readFile } from 'node:fs/promises';
import test from 'ava';
import { manPages } from '../../cli/output/man-pages.js';

for (const [file, page] of await manPages()) {
  test(`docs/man/${file} is up to date (if not, run “npm run man”)`, async (t) => {
    t.is(await readFile(new URL(`../../../docs/man/${file}`, import.meta.url), 'utf8'), page);
  });
}

for (const [file, page] of await manPages()) {
  test(`${file}: no text to type has a character that the formatter removes or changes`, (t) => {
    const requests = page.split('\n').filter((line) => /^\.(B|I|SS) /.test(line));
    t.deepEqual(
      requests.filter((line) => /["'`^~]/.test(line)),
      [],
    );
  });
}
