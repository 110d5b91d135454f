/** The programs in docs/library.md: they compile, they run, and they print what the page says. */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import ts from 'typescript';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

const page = await readFile(path.join(ROOT, 'docs/library.md'), 'utf8');
const examples = [
  ...page.matchAll(/^## (.*?)\n(?:(?!^## )[^])*?^```ts\n([^]*?)^```\n+^```text\n([^]*?)^```/gm),
].map(([, title = '', program = '', prints = '']) => ({ title, program, prints }));

test('every program of the page is tested', (t) => {
  t.is(examples.length, page.split('```ts\n').length - 1);
  t.true(examples.length > 5);
});

test('the programs compile with the types that the package exports', async (t) => {
  // Inside of the package, so that its own name is found.
  await mkdir(path.join(ROOT, 'build'), { recursive: true });
  const directory = await mkdtemp(path.join(ROOT, 'build/examples-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const files = await Promise.all(
    examples.map(async ({ program }, number) => {
      const file = path.join(directory, `example${number}.mts`);
      await writeFile(file, program);
      return file;
    }),
  );
  const { options } = ts.convertCompilerOptionsFromJson(
    {
      module: 'NodeNext',
      target: 'ES2022',
      lib: ['ES2022'],
      strict: true,
      noEmit: true,
      skipLibCheck: true,
      types: ['node'],
    },
    ROOT,
  );
  const diagnostics = ts.getPreEmitDiagnostics(
    ts.createProgram(files, { ...options, typeRoots: [path.join(ROOT, 'node_modules/@types')] }),
  );
  t.deepEqual(
    diagnostics.map(
      ({ messageText, file }) =>
        `${file?.fileName}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`,
    ),
    [],
  );
});

test('every export is documented', async (t) => {
  const typedoc = path.join(ROOT, 'node_modules/typedoc/bin/typedoc');
  // The build has checked the types.
  const options = ['--emit', 'none', '--disableSources', '--skipErrorChecking'];
  await t.notThrowsAsync(run(process.execPath, [typedoc, ...options], { cwd: ROOT }));
});

for (const { title, program, prints } of examples) {
  test.serial(title, async (t) => {
    const scratch = await scratchDirectory(t);
    const { outputText } = ts.transpileModule(program, {
      compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
    });
    // The name of an installed package.
    const file = path.join(scratch, 'example.mjs');
    await writeFile(
      file,
      outputText.replace(/'pcow'/g, `'${path.join(ROOT, 'dist/src/index.js')}'`),
    );
    const { stdout, stderr, exit } = await new Promise<{
      stdout: string;
      stderr: string;
      exit: number | null;
    }>((resolve) => {
      execFile(
        process.execPath,
        [file],
        { cwd: scratch, timeout: 600_000 },
        (error, out, errors) => {
          resolve({
            stdout: out,
            stderr: errors,
            exit: error === null ? 0 : (error.code as number | null),
          });
        },
      );
    });
    t.is(exit, 0, stderr);
    t.is(stdout, prints);
  });
}
