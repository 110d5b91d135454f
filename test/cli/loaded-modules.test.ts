/**
 * Commands start quickly, because they load one file, and only what they need from it. The test
 * compares what is loaded, never how long it takes.
 */
import { execFile } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import { build, type Metafile } from 'esbuild';
import { pcowProgram } from '../helpers/mounted.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../../', import.meta.url));

/** Packages that every command needs. */
const ALWAYS = ['commander', 'debug', 'ms', 'picocolors', 'has-flag', 'supports-color'];

/** The package that prints tables, and its dependencies. */
const TABLES = [
  ...['@colors/colors', 'ansi-regex', 'cli-table3', 'emoji-regex'],
  ...['is-fullwidth-code-point', 'string-width', 'strip-ansi'],
];
const WITH_TABLES = ['diff', 'info', 'list', 'measure', 'top'];

/** The processes of mounts, which load much more than a command. */
const OF_MOUNTS = /^src\/(attach\/|mount\/(mount\.|(attach|control|fuse|images|nodes)\/))/;

/** What the programs load, file by file. */
async function graph(): Promise<Metafile> {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: ['cli/programs.ts'],
    bundle: true,
    platform: 'node',
    format: 'cjs',
    metafile: true,
    write: false,
    logLevel: 'silent',
  });
  return metafile;
}

/**
 * The files that are loaded with a program, as paths in this repository: without what it loads
 * later, with import().
 */
function loadedWith(file: string, metafile: Metafile, found = new Set<string>()): Set<string> {
  if (found.has(file)) return found;
  found.add(file);
  for (const { path: next, kind, external } of metafile.inputs[file]?.imports ?? []) {
    if (kind !== 'dynamic-import' && external !== true) loadedWith(next, metafile, found);
  }
  return found;
}

function packageOf(file: string): string | undefined {
  return /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)?.[1];
}

test('a command loads no other command, no mount, and only the packages that it needs', async (t) => {
  const metafile = await graph();
  for (const file of (await readdir(path.join(root, 'cli/commands'))).map(
    (name) => `cli/commands/${name}`,
  )) {
    const name = path.basename(file, '.ts');
    const loaded = [...loadedWith(file, metafile)];
    const others = loaded.filter((other) => other.startsWith('cli/commands/') && other !== file);
    t.deepEqual(others, [], name);
    t.deepEqual(
      loaded.filter((other) => OF_MOUNTS.test(other)),
      [],
      name,
    );
    const packages = new Set(
      loaded.map(packageOf).filter((known) => known !== undefined && !ALWAYS.includes(known)),
    );
    t.deepEqual([...packages].sort(), WITH_TABLES.includes(name) ? TABLES : [], name);
  }
});

test('no command is loaded before it is known which one runs', async (t) => {
  const metafile = await graph();
  const loaded = [
    ...loadedWith('cli/programs.ts', metafile),
    ...loadedWith('cli/pcow-program.ts', metafile),
  ];
  t.deepEqual(
    loaded.filter((file) =>
      /^(src\/(?!engine\/(built|errors|quote|system-errors)\.|images\/mount-)|cli\/commands)/.test(
        file,
      ),
    ),
    [],
  );
  t.deepEqual(
    loaded.map(packageOf).filter((known) => known !== undefined && !ALWAYS.includes(known)),
    [],
  );
});

test('a command is read from one file', async (t) => {
  const scratch = await scratchDirectory(t);
  const env = { ...process.env, NODE_V8_COVERAGE: path.join(scratch, 'coverage') };
  await run(process.execPath, [pcowProgram, 'list', scratch], { env });
  const [report = ''] = await readdir(env.NODE_V8_COVERAGE);
  const { result } = JSON.parse(
    await readFile(path.join(env.NODE_V8_COVERAGE, report), 'utf8'),
  ) as {
    result: { url: string }[];
  };
  const files = result
    .filter(({ url }) => url.startsWith('file:'))
    .map(({ url }) => path.relative(root, fileURLToPath(url)));
  t.deepEqual(files.sort(), [
    'dist/cli/bundle/programs.cjs',
    'dist/cli/bundled.cjs',
    'dist/cli/pcow.cjs',
  ]);
});

test('with DEBUG, the stack of an error names functions and lines of the sources', async (t) => {
  const scratch = await scratchDirectory(t);
  const env = { ...process.env, DEBUG: 'pcow:cli' };
  const { stderr } = await t.throwsAsync<Error & { stderr: string }>(
    run(process.execPath, [pcowProgram, 'info', 'none.pcow'], { cwd: scratch, env }),
  );
  t.regex(stderr, /at (async )?findImage \(\S*src\/images\/find-image\.ts:\d+:\d+\)/);
});
