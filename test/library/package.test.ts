/**
 * The files of the npm package. scripts/fresh-machine installs and uses it; this tests its list of
 * files.
 */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

const words = ['pack', '--dry-run', '--json', '--ignore-scripts'];
const { stdout } = await promisify(execFile)('npm', words, { cwd: ROOT, maxBuffer: 1 << 24 });
const [found] = JSON.parse(stdout) as { files: { path: string }[] }[];
const files = (found?.files ?? []).map(({ path }) => path);

test('the package has its programs, its licence, and the instructions to report a vulnerability', async (t) => {
  const { bin } = JSON.parse(await readFile(`${ROOT}package.json`, 'utf8')) as {
    bin: Record<string, string>;
  };
  for (const file of [
    ...Object.values(bin),
    'LICENSE',
    'README.md',
    'SECURITY.md',
    'CHANGELOG.md',
  ]) {
    t.true(files.includes(file), file);
  }
});

test('each source map has the sources that it names', async (t) => {
  for (const file of files.filter((file) => file.endsWith('.map'))) {
    const map = JSON.parse(await readFile(ROOT + file, 'utf8')) as {
      sources: string[];
      sourcesContent?: string[];
    };
    t.is(map.sourcesContent?.length, map.sources.length, file);
  }
});
