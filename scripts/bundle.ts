/**
 * Writes dist/cli/bundle/programs.cjs, which the programs run: cli/programs.ts with everything it
 * loads. Then its code cache (code-cache.ts), with which V8 starts it sooner.
 */
import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const OUTPUT = fileURLToPath(new URL('../cli/bundle/programs.cjs', import.meta.url));

// V8 knows another file by its length only.
rmSync(`${OUTPUT}.cache`, { force: true });

await build({
  absWorkingDir: fileURLToPath(new URL('../../', import.meta.url)),
  entryPoints: ['cli/programs.ts'],
  // At the same depth as the modules in dist/src/*/, because these find files beside dist/ relative
  // to themselves.
  outfile: OUTPUT,
  bundle: true,
  // Large, and needed by two commands only: these load it from node_modules, by require(), because
  // a script with a code cache has no import().
  external: ['undici'],
  supported: { 'dynamic-import': false },
  platform: 'node',
  target: 'node20',
  format: 'cjs',
  banner: { js: "const BUNDLE_URL = require('node:url').pathToFileURL(__filename).href;" },
  define: { 'import.meta.url': 'BUNDLE_URL' },
  minifyWhitespace: true,
  minifySyntax: true,
  sourcemap: true,
  logLevel: 'warning',
});

const cache = fileURLToPath(new URL('code-cache.js', import.meta.url));
execFileSync(process.execPath, ['--predictable', cache, OUTPUT], {
  stdio: ['ignore', 'ignore', 'pipe'], // one of its commands fails, as it should
});
