/**
 * Writes dist/cli/bundle/programs.cjs, which the programs run: cli/programs.ts with everything it
 * loads.
 */
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

await build({
  absWorkingDir: fileURLToPath(new URL('../../', import.meta.url)),
  entryPoints: ['cli/programs.ts'],
  // At the same depth as the modules in dist/src/*/, because these find files beside dist/ relative
  // to themselves.
  outfile: 'dist/cli/bundle/programs.cjs',
  bundle: true,
  // Large, and needed by two commands only: these load it from node_modules.
  external: ['undici'],
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
