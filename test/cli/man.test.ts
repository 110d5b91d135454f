/** docs/man is made from the help texts; this fails where somebody changed one and not the other. */
import { readFile } from 'node:fs/promises';
import test from 'ava';
import { manPages } from '../../cli/output/man-pages.js';

for (const [file, page] of await manPages()) {
  test(`docs/man/${file} is up to date (“npm run man” makes it so)`, async (t) => {
    t.is(await readFile(new URL(`../../../docs/man/${file}`, import.meta.url), 'utf8'), page);
  });
}

for (const [file, page] of await manPages()) {
  test(`${file}: nothing that is typed has a sign that the formatter takes away or changes`, (t) => {
    const requests = page.split('\n').filter((line) => /^\.(B|I|SS) /.test(line));
    t.deepEqual(
      requests.filter((line) => /["'`^~]/.test(line)),
      [],
    );
  });
}
