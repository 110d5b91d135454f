/**
 * The programs in one file, made by scripts/bundle.ts, because Node takes longer to find and read
 * 300 files than to run most commands. This file and the programs' own files are CommonJS, with
 * which Node starts faster.
 */
import module_ = require('node:module');
import type Programs = require('./programs.js');

// With source maps, the stack of an error names the sources. Only DEBUG shows a stack, and reading
// the map takes longer than most commands.
if (process.env.DEBUG !== undefined) process.setSourceMapsEnabled(true);

// The file does not exist before it is made, so TypeScript cannot check it.
export = module_.createRequire(__filename)('./bundle/programs.cjs') as typeof Programs;
