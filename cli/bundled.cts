/**
 * The programs in one file, made by scripts/bundle.ts, because Node takes longer to find and read
 * 300 files than to run most commands. Beside it is its code cache, because V8 takes longer to
 * compile the file than to run most commands. This file and the programs' own files are CommonJS,
 * with which Node starts faster.
 */
import fs = require('node:fs');
import module_ = require('node:module');
import path = require('node:path');
import vm = require('node:vm');
import type Programs = require('./programs.js');

type Evaluate = (
  exports: typeof Programs,
  require: NodeJS.Require,
  module: { exports: typeof Programs },
  file: string,
  directory: string,
) => void;

// The file does not exist before it is made, so TypeScript cannot check it.
const FILE = path.join(__dirname, 'bundle/programs.cjs');
const requireThere = module_.createRequire(FILE);

/** Another version of Node refuses the cache, and compiles the file. */
function fromCache(): typeof Programs {
  // esbuild writes ASCII.
  const source = module_.wrap(fs.readFileSync(FILE, 'latin1'));
  const script = new vm.Script(source, { filename: FILE, cachedData: codeCache() });
  const programs = { exports: {} as typeof Programs };
  const evaluate = script.runInThisContext() as Evaluate;
  evaluate(programs.exports, requireThere, programs, FILE, path.dirname(FILE));
  return programs.exports;
}

function codeCache(): Buffer | undefined {
  try {
    return fs.readFileSync(`${FILE}.cache`);
  } catch {
    return undefined;
  }
}

// With source maps, the stack of an error names the sources. Only DEBUG shows a stack, and reading
// the map takes longer than most commands. Node reads maps of what it has loaded itself.
function withSourceMap(): typeof Programs {
  process.setSourceMapsEnabled(true);
  return requireThere(FILE) as typeof Programs;
}

export = process.env.DEBUG === undefined ? fromCache() : withSourceMap();
